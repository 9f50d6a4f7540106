"""Schedule, groups, decay and clipping against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import OptimConfig, ParamGroup, TrainConfig
from refvlm_jax.train.optim import (
    check_groups,
    check_trained,
    decays,
    group_of,
    is_trainable,
    make_optimizer,
    make_schedule,
    matrix_axes,
)
from refvlm_jax.train.step import cast_params

AXES = {
    "llama.q": ("layers", "embed", "heads"),
    "llama.norm.scale": ("layers", "embed"),
    "box.out.bias": ("heads", "head_dim"),
}


def values(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"llama.q": (2, 3, 4), "llama.norm.scale": (2, 3), "box.out.bias": (2, 2)}
    return {n: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def test_cosine_schedule_has_the_documented_corners():
    schedule = make_schedule(OptimConfig(lr=2.0, warmup_steps=4, end_lr_ratio=0.1), 104)
    assert float(schedule(0)) == pytest.approx(0.5)
    assert float(schedule(3)) == pytest.approx(2.0)
    assert float(schedule(4)) == pytest.approx(2.0)
    assert float(schedule(54)) == pytest.approx(2.0 * 0.55)
    assert float(schedule(104)) == pytest.approx(0.2)


def test_wsd_stays_at_the_peak_and_falls_linearly_over_the_last_share():
    schedule = make_schedule(
        OptimConfig(lr=2.0, warmup_steps=10, schedule="wsd", decay_ratio=0.25, end_lr_ratio=0.1),
        100,
    )
    assert float(schedule(0)) == pytest.approx(0.2)
    assert float(schedule(9)) == pytest.approx(2.0)
    assert float(schedule(75)) == pytest.approx(2.0)
    assert float(schedule(76)) < 2.0
    assert float(schedule(80)) == pytest.approx(2.0 * (0.1 + 0.9 * 0.8))
    assert float(schedule(100)) == pytest.approx(0.2)


def test_wsd_falls_from_the_end_of_the_warm_up_at_most():
    schedule = make_schedule(
        OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd", decay_ratio=1.0), 100
    )
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(99)) == pytest.approx(1 / 90, rel=1e-3)


def test_linear_and_constant_schedules():
    linear = make_schedule(OptimConfig(lr=1.0, schedule="linear"), 10)
    constant = make_schedule(OptimConfig(lr=1.0, schedule="constant", end_lr_ratio=0.0), 10)
    np.testing.assert_allclose([linear(s) for s in (0, 5, 10)], [1.0, 0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose([constant(s) for s in (0, 9)], [1.0, 1.0])


def test_first_matching_group_wins():
    config = OptimConfig(
        groups=(ParamGroup(pattern="norm", lr_scale=0.5), ParamGroup(pattern="^llama", frozen=True))
    )
    assert group_of(config, "llama.norm.scale").lr_scale == 0.5
    trainable = is_trainable(config)
    assert [trainable(n) for n in AXES] == [False, True, True]


def test_random_matrices_are_never_trained_and_keep_their_precision():
    trainable = is_trainable(OptimConfig())
    assert not trainable("adapter.image_position.fourier") and trainable("adapter.text.fc1.kernel")
    params = {name: jnp.ones((2, 2)) for name in ("a.fourier", "a.kernel")}
    cast = cast_params(params, TrainConfig(compute_dtype="bfloat16"))
    assert (cast["a.fourier"].dtype, cast["a.kernel"].dtype) == (jnp.float32, jnp.bfloat16)


def test_groups_that_match_nothing_or_freeze_all_are_errors():
    with pytest.raises(ConfigError, match=r"groups\[0\].*matches no parameter.*box, llama"):
        check_groups(OptimConfig(groups=(ParamGroup(pattern="lama2"),)), list(AXES))
    with pytest.raises(ConfigError, match="freeze every parameter"):
        check_trained(OptimConfig(groups=(ParamGroup(pattern=".", frozen=True),)), list(AXES))


def test_decay_spares_norms_and_biases_even_when_stacked():
    assert [decays(n, a) for n, a in AXES.items()] == [True, False, False]


def test_update_matches_optax_adamw_per_group():
    config = OptimConfig(
        lr=0.1,
        schedule="constant",
        weight_decay=0.2,
        clip_norm=0.0,
        groups=(ParamGroup(pattern="^box", lr_scale=0.25),),
    )
    params, grads = values(0), values(1)
    tx = make_optimizer(config, 10, AXES)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name in AXES:
        decay = 0.2 if name == "llama.q" else 0.0
        lr = 0.025 if name.startswith("box") else 0.1
        reference = optax.adamw(lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=decay)
        wanted, _ = reference.update(grads[name], reference.init(params[name]), params[name])
        np.testing.assert_allclose(updates[name], wanted, rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimConfig(lr=1.0, schedule="constant", clip_norm=1.0)
    params, tx = values(0), make_optimizer(config, 10, AXES)
    grads = values(1, scale=100.0)
    _, clipped = tx.update(grads, tx.init(params), params)
    norm = optax.global_norm(grads)
    np.testing.assert_allclose(
        clipped["adam"].mu["llama.q"], 0.1 * grads["llama.q"] / norm, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_momentum_in_half_the_bytes_moves_parameters_alike(name):
    axes = {"b.kernel": ("embed", "mlp"), "b.bias": ("mlp",)}
    params = {"b.kernel": jnp.eye(3), "b.bias": jnp.ones(3)}
    moved = {}
    for dtype in ("param", "bfloat16"):
        config = OptimConfig(name=name, lr=0.1, momentum_dtype=dtype)
        tx = make_optimizer(config, 10, axes)
        state, values = tx.init(params), params
        for step in range(4):
            gradient = jax.tree.map(lambda p, step=step: jnp.sin(p + step), values)
            updates, state = tx.update(gradient, state, values)
            values = optax.apply_updates(values, updates)
        moved[dtype] = values
        stored = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
        assert stored == {"float32"} | ({"bfloat16"} if dtype == "bfloat16" else set())
    for key, value in moved["param"].items():
        np.testing.assert_allclose(moved["bfloat16"][key], value, atol=5e-3)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_frozen_parameters_have_no_state(name):
    axes = {"a.kernel": ("embed", "mlp"), "b.kernel": ("embed", "mlp"), "b.bias": ("mlp",)}
    groups = (ParamGroup(pattern="^a[.]", frozen=True),)
    tx = make_optimizer(OptimConfig(name=name, groups=groups), 10, axes)
    params = {"b.kernel": jnp.ones((2, 3)), "b.bias": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates.keys() == params.keys()


def test_muon_turns_matrices_and_leaves_the_rest_to_adam():
    axes = {
        "q.kernel": ("layers", "embed", "heads", "head_dim"),
        "o.kernel": ("layers", "heads", "head_dim", "embed"),
        "conv.kernel": (None, None, "conv_in", "conv_out"),
        "embedding": ("vocab", "embed"),
        "norm.scale": ("layers", "embed"),
    }
    shapes = {
        "q.kernel": (2, 6, 2, 4), "o.kernel": (2, 2, 4, 6), "conv.kernel": (3, 3, 2, 5),
        "embedding": (7, 6), "norm.scale": (2, 6),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    params, grads = (
        {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
        for _ in range(2)
    )
    sides = {"q.kernel": (6, 8), "o.kernel": (8, 6), "conv.kernel": (18, 5)}
    updates = {}
    for name in ("muon", "adamw"):
        config = OptimConfig(name=name, lr=0.1, clip_norm=0.0, schedule="constant")
        tx = make_optimizer(config, 10, axes)
        updates[name], _ = tx.update(grads, tx.init(params), params)
    for name in ("embedding", "norm.scale"):
        np.testing.assert_allclose(updates["muon"][name], updates["adamw"][name], rtol=1e-6)
    for name, (rows, columns) in sides.items():
        for matrix in np.asarray(updates["muon"][name]).reshape(-1, rows, columns):
            singular = np.linalg.svd(matrix, compute_uv=False)
            want = 0.1 * 0.2 * max(rows, columns) ** 0.5
            # Five Newton-Schulz steps bring singular values near one, not to it.
            np.testing.assert_allclose(singular, want, rtol=0.35)
            assert np.sqrt((matrix**2).mean()) == pytest.approx(0.1 * 0.2, rel=0.3)


def test_matrices_of_attention_span_all_heads():
    assert matrix_axes("q.kernel", ("layers", "embed", "heads", "head_dim")) == ((1,), (2, 3))
    assert matrix_axes("o.kernel", ("layers", "heads", "head_dim", "embed")) == ((1, 2), (3,))
    assert matrix_axes("llama.embedding", ("vocab", "embed")) is None
    assert matrix_axes("norm.kernel", ("layers", "embed")) is None
