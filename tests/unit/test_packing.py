"""Small arrays end to end, and what comes back."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from refvlm_jax.mesh.build import batch_sharding, make_mesh, make_rules
from refvlm_jax.testing.toy import ToyModel, toy_batch, toy_config, toy_task
from refvlm_jax.train.loop import plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.packing import Numbers, Packing, RowPacking
from refvlm_jax.train.run import put_batch
from refvlm_jax.train.state import initialize
from refvlm_jax.train.step import make_packed_step, make_train_step

DTYPES = [np.dtype(t) for t in ("float32", "int32", "uint8", "bool", "float16")]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
LIMIT = 64
"""Bytes up to which these tests pack."""
ONE = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("x",)), PartitionSpec())


def random_array(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray:
    """Any bits at all, NaNs and negative zeros among them."""
    dtype = draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, count, np.uint8)
    return (raw % 2 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, np.ndarray]:
    shapes = draw(st.lists(SHAPES, max_size=6))
    return {f"p{i}": random_array(draw, shape) for i, shape in enumerate(shapes)}


@st.composite
def batches(draw: st.DrawFn) -> dict[str, np.ndarray]:
    rows, shapes = draw(st.integers(1, 4)), draw(st.lists(SHAPES, max_size=6))
    return {f"f{i}": random_array(draw, (rows, *shape)) for i, shape in enumerate(shapes)}


def assert_same_bits(found: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        array = np.asarray(found[name])
        assert (array.shape, array.dtype) == (value.shape, value.dtype), name
        assert array.tobytes() == value.tobytes(), name


@settings(max_examples=25, deadline=None)
@given(trees())
def test_a_tree_comes_back_bit_for_bit(tree):
    abstract = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE) for n, x in tree.items()}
    packing = Packing(abstract, LIMIT)
    packed = packing.pack(jax.device_put(tree, ONE))
    assert len(packed.others) == sum(x.nbytes > LIMIT for x in tree.values())
    assert len(packed.vectors) == len({x.dtype for x in tree.values() if x.nbytes <= LIMIT})
    assert_same_bits(packing.unpack(packed), tree)


@settings(max_examples=25, deadline=None)
@given(batches())
def test_a_batch_comes_back_bit_for_bit(batch):
    packing = RowPacking(batch, LIMIT)
    rows = packing.pack(batch)
    assert len(rows.others) == sum(x.nbytes > LIMIT * len(x) for x in batch.values())
    assert_same_bits(jax.jit(lambda r: r.packing.unpack(r))(jax.device_put(rows)), batch)


def test_arrays_that_stay_are_not_copied():
    tree = {"large": jnp.ones(100), "small": jnp.ones(2)}
    form = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=ONE) for n, x in tree.items()}
    packing = Packing(form, LIMIT)
    packed = packing.pack(tree)
    assert packed.others == [tree["large"]] and packed.others[0] is tree["large"]
    assert packing.unpack(packed)["large"] is tree["large"]


def test_rows_of_a_view_are_packed_as_they_read():
    batch = {"turned": np.arange(12, dtype=np.int32).reshape(4, 3).T}
    packing = RowPacking(batch)
    assert_same_bits(packing.unpack(packing.pack(batch)), batch)


def test_numbers_keep_their_names():
    numbers = jax.jit(lambda x: Numbers.of({"loss": x, "count/box": 2 * x}))(jnp.float32(1.5))
    assert numbers.fetch() == {"loss": 1.5, "count/box": 3.0}


@pytest.mark.parametrize("dropout", [False, True])
def test_the_packed_step_is_the_step(dropout):
    config, task = toy_config(), toy_task(dropout=dropout)
    mesh, rules = make_mesh(config.mesh), make_rules(config.mesh)
    plan, sharding = plan_state(config, define(ToyModel)), batch_sharding(mesh, rules)
    plain = make_train_step(plan, task, config, mesh, rules)
    packing, rows = Packing(plan.state), config.data.batch_size
    packed = make_packed_step(plan, packing, task, config, mesh, rules)
    state, frozen = initialize(plan, config.seed)
    other, _ = initialize(plan, config.seed)
    other, row_packing = packing.pack(other), RowPacking(toy_batch(0, rows))
    for index in range(3):
        batch = toy_batch(index, rows)
        state, metrics = plain(state, frozen, put_batch(batch, sharding, rows))
        other, numbers = packed(other, frozen, put_batch(row_packing.pack(batch), sharding, rows))
        found = numbers.fetch()
        assert found.keys() == metrics.keys()
        for name, value in metrics.items():
            assert found[name] == pytest.approx(float(value), rel=1e-6, abs=1e-7), name
    assert packed._cache_size() == 1
    assert len(other.vectors) + len(other.others) < len(jax.tree.leaves(state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state,
        packing.unpack(other),
    )
