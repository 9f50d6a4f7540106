"""Answering as a program for described devices: reading the prompts, and writing one token.

Serving is a run whose every parameter is frozen, in the compute dtype, on the run's own mesh.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from refvlm_jax.cli.run import build_model, check_answer_rows
from refvlm_jax.config.schema import ParamGroup, RunConfig
from refvlm_jax.infer.generate import NextToken, Prompt, next_token, read_prompt
from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.mesh.rules import MESH_AXES, ShardingRules, use_sharding
from refvlm_jax.mesh.shardings import fit_spec
from refvlm_jax.models.llama import KVCache
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.plan.program import Program, laid_out_batch, planned_shards
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define

Phase = Literal["train", "prefill", "decode"]


def serving(config: RunConfig, devices: int) -> RunConfig:
    """The run as it answers: `eval.batch_size` rows at a time, nothing trained.

    Raises:
      ConfigError: the rows do not divide over the mesh.
    """
    check_answer_rows(config, planned_shards(config, devices))
    train = dataclasses.replace(config.train, frozen_dtype=config.train.compute_dtype, accumulate=1)
    everything = (ParamGroup(pattern="", frozen=True),)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=config.eval.batch_size),
        optim=dataclasses.replace(config.optim, groups=everything),
        train=train,
    )


def trace_generation(config: RunConfig, devices: Sequence[jax.Device], phase: Phase) -> Program:
    """Traces one phase of a `serving` run on these devices, described or real."""
    mesh, rules = make_mesh(config.mesh, devices), make_rules(config.mesh)
    plan = plan_state(config, define(partial(build_model, config)), mesh)
    layout = batch_sharding(mesh, rules)
    batch = laid_out_batch(config, layout)
    cache = abstract_cache(config, mesh, rules)
    rows, width = config.data.batch_size, config.model.llama.width

    def a_row(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=layout)

    def prefill(params: Any, batch: Any) -> Prompt:
        with use_sharding(mesh, rules):
            return read_prompt(plan.model.merge(params), batch, config.eval.max_new_tokens)

    def decode(
        params: Any, state: Any, position: Any, slot: Any, cache: Any, done: Any
    ) -> NextToken:
        with use_sharding(mesh, rules):
            model: RefVLM = plan.model.merge(params)
            return next_token(model, state, position, slot, cache, done, 0)

    if phase == "prefill":
        traced = jax.jit(prefill).trace(plan.frozen, batch)
    else:
        slot = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        state, position = a_row(jnp.dtype(config.train.compute_dtype), width), a_row(jnp.int32)
        traced = jax.jit(decode, donate_argnums=4).trace(
            plan.frozen, state, position, slot, cache, a_row(jnp.bool_)
        )
    return Program(config, mesh, plan, batch, traced)


def abstract_cache(config: RunConfig, mesh: Any, rules: ShardingRules) -> KVCache:
    """Keys and values of prompts and answers, rows and heads spread as in a step."""
    llama = config.model.llama
    rows, slots = config.data.batch_size, config.data.seq_len + config.eval.max_new_tokens
    shape = (llama.layers, rows, slots, llama.kv_heads, llama.head_dim)
    spec = rules.spec((None, "batch", None, "act_heads", None))
    spread = NamedSharding(mesh, fit_spec(spec, shape, mesh))
    by_row = NamedSharding(mesh, fit_spec(rules.spec(("batch", None)), (rows, slots), mesh))
    kept = jax.ShapeDtypeStruct(shape, jnp.dtype(config.train.compute_dtype), sharding=spread)
    return KVCache(
        k=kept,  # type: ignore[arg-type]
        v=kept,  # type: ignore[arg-type]
        positions=jax.ShapeDtypeStruct((rows, slots), jnp.int32, sharding=by_row),  # type: ignore[arg-type]
        valid=jax.ShapeDtypeStruct((rows, slots), jnp.bool_, sharding=by_row),  # type: ignore[arg-type]
    )


def in_place(config: RunConfig) -> dict[tuple[int, ...], float]:
    """Shapes that `plan.liveness` must not count: the cache is updated where it is."""
    one = jax.sharding.AbstractMesh((1,) * len(MESH_AXES), MESH_AXES)
    return {abstract_cache(config, one, make_rules(config.mesh)).k.shape: math.inf}
