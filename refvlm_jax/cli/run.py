"""What training and evaluation share on the model's side: a run configuration made concrete."""

from functools import partial

import jax.numpy as jnp
from flax import nnx

from refvlm_jax.batch import BatchSpec
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.models.objective import loss_counts, loss_sums, loss_weights
from refvlm_jax.models.refvlm import RefVLM
from refvlm_jax.train.task import Task


def batch_spec(config: RunConfig, seq_len: int | None = None) -> BatchSpec:
    """Static batch sizes implied by the data and model sections."""
    data, model = config.data, config.model
    prompts = model.region_prompts
    return BatchSpec(
        seq_len=seq_len or data.seq_len,
        images=data.images,
        image_size=model.vision.image_size,
        image_tokens=model.vision.tokens,
        prompts=data.prompts if prompts else 0,
        prompt_tokens=prompts.tokens if prompts else 0,
        refs=data.refs,
        mask_refs=data.mask_refs,
        mask_size=data.mask_size,
        kpt_refs=data.kpt_refs if model.keypoint else 0,
        kpt_points=model.keypoint.points if model.keypoint else 0,
        depth_refs=data.depth_refs if model.depth else 0,
        depth_size=data.depth_size if model.depth else 0,
    )


def build_model(config: RunConfig, rngs: nnx.Rngs) -> RefVLM:
    """The model of a run, with fresh parameters."""
    return RefVLM(config.model, rngs, dtype=jnp.dtype(config.train.compute_dtype))


def task_of(config: RunConfig) -> Task:
    """The training objective of a run."""
    return Task(
        loss_sums=loss_sums,
        loss_counts=partial(loss_counts, config.model),
        weights=loss_weights(config.model),
    )


def check_answer_rows(config: RunConfig, shards: int) -> None:
    """Raises ConfigError unless the rows answered together divide over the parts of a batch."""
    rows = config.eval.batch_size
    if rows % shards:
        raise ConfigError(
            f"eval.batch_size = {rows} is not divisible by the {shards} batch shards of "
            f"mesh.preset = {config.mesh.preset!r}; use a multiple of {shards}, or a mesh with a "
            "longer tensor axis"
        )
