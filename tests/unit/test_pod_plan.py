"""Parts of a plan: pods by name, FLOPs, collectives of a text, liveness, complaints, the search."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.schema import DataConfig, MeshConfig, RunConfig
from refvlm_jax.mesh.rules import MESH_AXES
from refvlm_jax.plan.compile import (
    PlanError,
    described_devices,
    gpu_description,
    read_out_of_memory,
)
from refvlm_jax.plan.flops import count_flops, scopes
from refvlm_jax.plan.hlo import Collective, Collectives, collectives, rematerialisations
from refvlm_jax.plan.liveness import peak_of
from refvlm_jax.plan.pods import device_table, parse_pod
from refvlm_jax.plan.roofline import communication, link_speed, members_inside
from refvlm_jax.plan.search import COMPILES, candidates, search
from refvlm_jax.plan.worker import make_plan


@pytest.mark.parametrize(
    ("name", "devices", "topology"),
    [
        ("v5e-1", 1, (1, 1)),
        ("v5e-8", 8, (2, 4)),
        ("v5e-64", 64, (8, 8)),
        ("v6e-256", 256, (16, 16)),
        ("v5p-8", 4, (2, 2, 1)),
        ("v5p-64", 32, (2, 4, 4)),
        ("v4-128", 64, (4, 4, 4)),
        ("v5p-64x2", 64, (2, 4, 4)),
        ("h100-8x8", 64, (8, 8)),
        ("h100-1", 1, (1, 1)),
        ("cpu-8", 8, (8,)),
    ],
)
def test_pods_by_name(name: str, devices: int, topology: tuple[int, ...]) -> None:
    pod = parse_pod(name)
    assert (pod.devices, pod.topology) == (devices, topology)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "KIND-NUMBER"),
        ("v9-8", "kinds v4, v5e"),
        ("v5e-2", "use one of v5e-1, v5e-4"),
        ("v5p-4", "count cores; use one of v5p-8, v5p-16"),
        ("v5e-0", "no devices"),
    ],
)
def test_names_that_are_no_pods(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pod(name)


def test_the_device_table_is_complete() -> None:
    for device in device_table().values():
        assert device.source and device.capacity <= device.memory
        assert min(device.flops, device.memory_bandwidth, device.link, device.network) > 0
    assert "core_count: 132" in gpu_description(device_table()["h100"])


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refvlm_jax.plan.compile._installed", lambda module: False)
    with pytest.raises(PlanError, match=r"needs libtpu.*pip install 'jax\[tpu\]'.*--analytic"):
        described_devices(parse_pod("v5e-4"))
    with pytest.raises(PlanError, match=r"jax\[cuda12\]"):
        described_devices(parse_pod("h100-8"))


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([0, 1]))
def test_flops_count_loops_and_tell_recomputation_apart(layers: int, rows: int, remat: int) -> None:
    width = 8

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            with jax.named_scope("block"):
                return jnp.tanh(x @ w), None

        step = jax.checkpoint(body, prevent_cse=False) if remat else body
        return jax.lax.scan(step, x, weights)[0].sum()

    shapes = ((layers, width, width), (rows, width))
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    product = 2 * rows * width * width * layers
    forward = count_flops(jax.make_jaxpr(loss)(*args).jaxpr)
    assert forward.total == forward.model == product
    both = count_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*args).jaxpr)
    assert both.model == 3 * product
    assert both.total == (3 + remat) * product
    assert set(both.by_module) == {"block"}
    # The gradient of weights that nothing asks for is no work.
    assert count_flops(jax.make_jaxpr(jax.grad(loss, 1))(*args).jaxpr).model == 2 * product


def test_scopes_are_freed_of_wrappers() -> None:
    stack = "jit(step)/transpose(jvp(llama))/while/body/checkpoint/rematted_computation/attn/dot"
    assert scopes(stack) == ["step", "llama", "attn", "dot"]


HLO = """
HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %w = f32[1,4]{1,0} get-tuple-element(%p), index=1
  %g = f32[8,4]{1,0:T(8,128)} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %r = f32[2,4]{1,0} reduce-scatter(%g), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
%cond (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[] constant(5)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}
%all-reduce-scatter.1 (p: f32[64]) -> f32[8] {
  %x = f32[64]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %d = f32[8]{0} dynamic-slice(%x, %i)
}
ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %l = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body
  %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
  %s = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%q), replica_groups=[2,4]<=[8], dimensions={0}
  %e = bf16[16]{0} all-gather-done(%s)
}
"""


def test_collectives_of_a_text() -> None:
    found = collectives(HLO, {"replica": 2, "fsdp": 4})
    ops = {(c.op, c.axes): c for c in found.ops}
    gather = ops["all-gather", ("fsdp",)]
    assert (gather.count, gather.size) == (6, 4)
    assert gather.payload == 5 * 8 * 4 * 4 + 16 * 2
    assert gather.moved == pytest.approx(gather.payload * 3 / 4)
    assert ops["reduce-scatter", ("replica",)].payload == 5 * 2 * (2 * 4 * 4)
    fused = ops["reduce-scatter", ("replica", "fsdp")]
    assert (fused.count, fused.payload) == (1, 64 * 4)
    assert found.unknown_loops == 0 and len(found.ops) == 3


SPREAD = """
HloModule m
%fused.1 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %g = bf16[8,4]{1,0} all-gather(%p), channel_id=7, GROUPS, dimensions={0}
}
%fused.2 (p: bf16[2,4]) -> bf16[8,4] {
  ROOT %g = bf16[8,4]{1,0} all-gather(%p), channel_id=7, GROUPS, dimensions={0}
}
ENTRY %main (p: bf16[2,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} fusion(%p), kind=kCustom, calls=%fused.1
  %b = bf16[8,4]{1,0} fusion(%p), kind=kCustom, calls=%fused.2
  %c = (bf16[2,4], bf16[2,4], u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
}
"""


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("mesh['a'=2,'b'=4] {'b'}", ("fsdp",), 4),
        ("mesh['a'=2,'b'=4] {'a'}", ("replica",), 2),
        ("mesh['a'=2,'b'=4] {'a','b'}", ("replica", "fsdp"), 8),
        ("mesh['x'=8] {'x':(2)4}", ("fsdp",), 4),
        ("mesh['x'=8] {'x':(1)2}", ("replica",), 2),
    ],
)
def test_one_collective_spread_over_fusions_counts_once(
    groups: str, axes: tuple[str, ...], size: int
) -> None:
    """As TPUs write it, with groups by the axes of a mesh; a transfer's state is no payload."""
    text = SPREAD.replace("GROUPS", f"replica_groups={groups}")
    ops = {c.op: c for c in collectives(text, {"replica": 2, "fsdp": 4}).ops}
    gather, permute = ops["all-gather"], ops["collective-permute"]
    assert (gather.axes, gather.size, gather.count, gather.payload) == (axes, size, 1, 64)
    assert (permute.axes, permute.payload) == (("fsdp",), 16)


def test_complaints_of_the_partitioner() -> None:
    said = (
        "W spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization. The compiler was not "
        'able to go from {a} to {b} for %x, metadata={op_name="jit(step)/embed/gather"}\n'
        "I something else\nW [SPMD] Involuntary full rematerialization. Without a name\n"
    )
    (warning,) = rematerialisations(said)
    assert warning.startswith("2 arrays") and "jit(step)/embed/gather" in warning
    assert rematerialisations("I compiled in 3 s") == []


def test_links_and_network() -> None:
    shape = {"replica": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    found = collectives(HLO, {"replica": 2, "fsdp": 4})
    one, two = parse_pod("v5e-8"), dataclasses.replace(parse_pod("v5e-4"), slices=2)
    assert members_inside(("replica",), one, shape) == 2
    assert members_inside(("replica",), two, shape) == 1
    assert members_inside(("fsdp",), two, shape) == members_inside(MESH_AXES, two, shape) == 4
    assert communication(found, one, shape)["network"] == 0
    assert communication(found, two, shape)["network"] > 0
    # 256 chips close their rings in both dimensions, 64 chips in none.
    assert link_speed(256, parse_pod("v5e-256")) == 2 * link_speed(64, parse_pod("v5e-64"))


@pytest.mark.parametrize(
    ("op", "axes", "size", "network", "links"),
    [
        # 16 members of 2 nodes: half of the array comes from afar, an eighth of that to each GPU.
        ("all-gather", ("replica", "fsdp"), 16, 8 / 8, 15 - 8 / 8),
        # One member a node: its own card brings everything.
        ("all-gather", ("replica",), 2, 8, 0),
        ("all-reduce", ("replica",), 2, 16, 0),
        # Nobody else wants what an all-to-all brings.
        ("all-to-all", ("replica", "fsdp"), 16, 8, 7),
        ("collective-permute", ("replica", "fsdp"), 16, 16, 0),
        ("all-gather", ("fsdp",), 8, 0, 14),
    ],
)
def test_cards_of_a_node_share_what_all_its_gpus_need(
    op: str, axes: tuple[str, ...], size: int, network: float, links: float
) -> None:
    pod = parse_pod("h100-2x8")
    shape = {"replica": 2, "fsdp": 8, "seq": 1, "tensor": 1}
    found = Collectives((Collective(op, axes, size, 1, 16.0),), 0)
    seconds = communication(found, pod, shape)
    assert seconds["network"] * pod.device.network == pytest.approx(network)
    assert seconds["links"] * pod.device.link == pytest.approx(links)


def test_liveness_counts_what_must_be_kept() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        kept = x @ w
        other = jnp.exp(x) @ w
        return (kept * other).sum()

    x, w = jnp.zeros((64, 32)), jnp.zeros((32, 32))
    found = peak_of(jax.make_jaxpr(f)(x, w).jaxpr, {})
    # Two products and the operand that is made for the second one.
    assert found.bytes == 3 * 64 * 32 * 4
    loop = jax.make_jaxpr(lambda x, w: jax.lax.scan(lambda c, w: (c @ w, c), x, w))
    stacked = peak_of(loop(x, jnp.zeros((5, 32, 32))).jaxpr, {})
    assert stacked.bytes >= 5 * 64 * 32 * 4
    spread = peak_of(loop(x, jnp.zeros((5, 32, 32))).jaxpr, {(5, 64, 32): 8.0})
    assert spread.bytes < stacked.bytes


COMPLAINT = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.
Used 32.50G of 15.75G hbm. Exceeded hbm capacity by 16.75G.

Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_type="dot_general" op_name="jit(step)/jvp(llama)/attn/attention/dot_general"
     Shape: f32[2,32,4096,4096]{3,2,1,0:T(8,128)}
     Unpadded size: 4.00G
     ==========================

  2. Size: 512.00M
     Shape: bf16[128,2048]{1,0}
"""


def test_a_compilers_complaint_becomes_an_answer() -> None:
    found = read_out_of_memory(COMPLAINT, 16)
    assert (found.needed, found.capacity) == (int(32.5 * 2**30), int(15.75 * 2**30))
    first, second = found.tensors
    assert (first.bytes, first.shape, first.dtype) == (4 * 2**30, (2, 32, 4096, 4096), "f32")
    assert "llama/attn/attention" in first.scope and second.bytes == 512 * 2**20


def fake_planner(limit: float):
    """Fewer recomputations are faster and larger; the compiler needs a tenth more than estimated."""
    calls = {"estimates": 0, "compiles": 0}

    def planner(config: RunConfig, analytic: bool) -> dict:
        calls["estimates" if analytic else "compiles"] += 1
        remat = {"none": 3.0, "dots": 2.0, "full": 1.0}[config.model.llama.remat]
        peak = remat * 10 / config.train.accumulate * (1 if analytic else 1.1)
        time = (4 - remat) + config.train.accumulate / 100 + (config.mesh.shape[3] - 1)
        return {
            "fits": peak <= limit, "verdict": f"{peak:.1f} of {limit}",
            "memory": {"peak": {"value": peak}}, "time": {"step_serial": {"value": time}},
        }  # fmt: skip

    return planner, calls


def test_the_search_compiles_few_and_returns_a_patch() -> None:
    config = RunConfig(name="r", data=DataConfig(batch_size=64), mesh=MeshConfig(preset="fsdp"))
    planner, calls = fake_planner(limit=15.5)
    found = search(config, parse_pod("v5e-8"), planner)
    assert found.patch["model.llama.remat"] == "none" and found.patch["train.accumulate"] == 4
    assert found.plan["fits"] and calls["compiles"] == len(found.tried) <= COMPILES
    with pytest.raises(ConfigError, match=r"Lower data\.batch_size"):
        search(config, parse_pod("v5e-8"), fake_planner(limit=0.1)[0])


def test_the_search_asks_for_no_batch_that_does_not_divide() -> None:
    config = RunConfig(name="r", data=DataConfig(batch_size=16), mesh=MeshConfig(preset="fsdp"))
    fake, _ = fake_planner(limit=100)
    asked = set()

    def planner(candidate: RunConfig, analytic: bool) -> dict:
        asked.add((candidate.mesh.shape[3], candidate.train.accumulate))
        return fake(candidate, analytic)

    search(config, parse_pod("v5e-8"), planner)
    assert asked == {(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4)}


def test_the_search_tries_parameters_inside_a_node() -> None:
    config = RunConfig(name="r", data=DataConfig(batch_size=64), mesh=MeshConfig(preset="fsdp"))
    pods = ("h100-8x8", "v5e-64", "v5e-16x4", "v5e-1")
    meshes = {
        pod: list(dict.fromkeys((m.preset, m.shape[0]) for m in _tried_meshes(config, pod)))
        for pod in pods
    }
    assert meshes["h100-8x8"] == [("fsdp", 1), ("hsdp", 8), ("fsdp_tp", 1)]
    assert meshes["v5e-64"] == [("fsdp", 1), ("fsdp_tp", 1)]
    assert meshes["v5e-16x4"] == [("hsdp", 4), ("fsdp_tp", 4)]
    assert meshes["v5e-1"] == [("single", 1)]


def _tried_meshes(config: RunConfig, pod: str) -> list[MeshConfig]:
    return [candidate.mesh for candidate in candidates(config, parse_pod(pod))]


def test_a_worker_refuses_what_does_not_suit_the_pod() -> None:
    config = RunConfig(name="r", data=DataConfig(batch_size=12), mesh=MeshConfig(preset="fsdp"))
    with pytest.raises(ConfigError, match=r"data\.batch_size = 12 .* use a multiple of 8"):
        make_plan(config, parse_pod("cpu-8"), analytic=True)


def test_the_search_believes_the_compiler_about_communication() -> None:
    config = RunConfig(name="r", data=DataConfig(batch_size=64), mesh=MeshConfig(preset="fsdp"))
    fake, _ = fake_planner(limit=100)

    def planner(candidate: RunConfig, analytic: bool) -> dict:
        found = fake(candidate, analytic)
        # Gathering over the whole pod takes long, which only the compiled program tells.
        gathers = 0.0 if analytic or candidate.mesh.shape[3] == 2 else 5.0
        tensor = candidate.mesh.shape[3] - 1
        found["time"]["step_serial"]["value"] += gathers - tensor * 0.999
        return found

    found = search(config, parse_pod("v5e-8"), planner)
    assert found.patch["mesh.preset"] == "fsdp_tp" and found.patch["mesh.shape"][3] == 2
    assert found.plan["time"]["step_serial"]["value"] == min(t.seconds for t in found.tried)
    # Where one micro-batch fits, two of them are not compiled.
    kinds = [{**t.patch, "train.accumulate": 1} for t in found.tried]
    assert all(kind not in kinds[:number] for number, kind in enumerate(kinds))
