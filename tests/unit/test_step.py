"""The compiled step on the toy model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.testing.toy import ToyModel, toy_batch, toy_config, toy_task
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_train_step
from refvlm_jax.train.task import Task


def run(config, task=None, steps=3, initial=None):
    """States after every step (host copies), frozen parameters, metrics."""
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan = plan_state(config, define(ToyModel))
    step = make_train_step(plan, task or toy_task(), config, mesh, rules)
    state, frozen = initialize(plan, config.seed, initial)
    params, metrics = [jax.device_get(state.params)], []
    for index in range(steps):
        rows = config.data.batch_size
        batch = put_batch(toy_batch(index, rows), batch_sharding(mesh, rules), rows)
        state, numbers = step(state, frozen, batch)
        params.append(jax.device_get(state.params))
        metrics.append({k: float(v) for k, v in numbers.items()})
    return params, jax.device_get(frozen), metrics


def test_names_are_ours_and_layers_are_stacked():
    model = define(ToyModel)
    assert model.axes["blocks.up"] == ("layers", "embed", "mlp")
    assert model.shapes["blocks.up"] == (2, 16, 24)
    assert model.axes["stem"] == (None, "embed")


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(parts):
    whole, _, metrics = run(toy_config(train={"accumulate": 1}))
    split, _, split_metrics = run(toy_config(train={"accumulate": parts}))
    for name, value in whole[-1].items():
        np.testing.assert_allclose(split[-1][name], value, rtol=1e-6, atol=1e-6)
    for a, b in zip(metrics, split_metrics, strict=True):
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6), name


def test_metrics_are_the_weighted_sums_over_counts():
    *_, (metrics,) = run(toy_config(), steps=1)
    assert metrics["loss"] == pytest.approx(metrics["loss/mse"] + 0.01 * metrics["loss/pull"])
    assert metrics["count/mse"] == toy_batch(0, 16).valid.sum()
    assert metrics["lr"] == pytest.approx(0.01 / 3)


def test_configured_loss_weights_go_before_the_tasks():
    config = toy_config(optim={"loss_weights": {"pull": 2.0}})
    *_, (metrics,) = run(config, steps=1)
    assert metrics["loss"] == pytest.approx(metrics["loss/mse"] + 2 * metrics["loss/pull"])
    with pytest.raises(ValueError, match=r"\['pul'\].*mse"):
        run(toy_config(optim={"loss_weights": {"pul": 2.0}}), steps=1)


def test_loss_falls():
    *_, metrics = run(toy_config(optim={"lr": 0.03}), steps=20)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]


def test_frozen_parameters_do_not_move_and_groups_scale():
    groups = [{"pattern": "^blocks", "frozen": True}, {"pattern": "^stem", "lr_scale": 0.0}]
    params, frozen, _ = run(toy_config(optim={"groups": groups}))
    assert sorted(frozen) == ["blocks.down", "blocks.scale", "blocks.up"]
    assert not set(frozen) & set(params[0])
    np.testing.assert_array_equal(params[0]["stem"], params[-1]["stem"])
    assert np.abs(params[0]["head"] - params[-1]["head"]).max() > 1e-4


def test_bfloat16_compute_keeps_float32_state_and_named_islands():
    seen = {}

    def spy(model, batch, key):
        seen.update(head=model.head.dtype, stem=model.stem.dtype)
        return toy_task().loss_sums(model, batch, key)

    task = Task(loss_sums=spy, loss_counts=toy_task().loss_counts)
    config = toy_config(train={"compute_dtype": "bfloat16", "keep_float32": ["^head$"]})
    params, _, metrics = run(config, task, steps=1)
    assert seen == {"head": jnp.float32, "stem": jnp.bfloat16}
    assert all(value.dtype == np.float32 for value in params[-1].values())
    assert np.isfinite(metrics[0]["loss"])


def test_dropout_depends_on_the_seed_and_the_step_only():
    task = toy_task(dropout=True)
    first = run(toy_config(), task)[2]
    assert first == run(toy_config(), task)[2]
    assert first != run(toy_config(seed=1), task)[2]


def test_initial_parameters_replace_random_ones():
    stem = np.full((8, 16), 0.25, np.float32)
    params, *_ = run(toy_config(), steps=0, initial={"stem": stem})
    np.testing.assert_array_equal(params[0]["stem"], stem)
    with pytest.raises(ValueError, match=r"stem: expected \(8, 16\), found \(8, 4\)"):
        run(toy_config(), steps=0, initial={"stem": stem[:, :4]})
    with pytest.raises(ValueError, match="steam is unknown"):
        run(toy_config(), steps=0, initial={"steam": stem})


def test_terms_of_sums_and_counts_must_agree():
    task = dataclasses.replace(toy_task(), loss_counts=lambda batch: {"mse": jnp.ones(())})
    with pytest.raises(ValueError, match="differ"):
        run(toy_config(), dataclasses.replace(task, weights={}), steps=1)
