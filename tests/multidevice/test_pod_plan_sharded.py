"""Plans of a tiny run, compiled for eight simulated devices of this process."""

import dataclasses
import math

import jax
import pytest

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.model import ConvNextConfig, LlamaConfig, RefVLMConfig
from refvlm_jax.config.schema import (
    DataConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from refvlm_jax.mesh.rules import PRESETS
from refvlm_jax.plan.analytic import estimate
from refvlm_jax.plan.compile import Compiled, compile_step
from refvlm_jax.plan.generation import Phase
from refvlm_jax.plan.hlo import Collective, Collectives, collectives
from refvlm_jax.plan.lint import expected_gathers, gathers, whole_parameters
from refvlm_jax.plan.pods import parse_pod
from refvlm_jax.plan.program import Program, state_bytes, trace_step
from refvlm_jax.plan.report import plan
from refvlm_jax.testing.tiny import tiny_config

pytestmark = pytest.mark.multidevice
POD = parse_pod("cpu-8")


def stacked(layers: int = 16) -> RefVLMConfig:
    """A language model that outweighs everything else, and no decoders.

    Layers cost nothing to compile, and what lies outside the stack is then 4% of what is gathered.
    """
    tiny = tiny_config()
    llama = LlamaConfig(
        vocab_size=64, width=64, layers=layers, heads=4, kv_heads=4, head_dim=16, mlp_dim=192,
        remat="full",
    )  # fmt: skip
    return dataclasses.replace(
        tiny, llama=llama, box=None, mask=None, keypoint=None, depth=None, region_prompts=None
    )


def run_config(model: RefVLMConfig, rows: int = 8, preset: str = "fsdp") -> RunConfig:
    return RunConfig(
        name="tiny",
        model=model,
        data=DataConfig(
            batch_size=rows, seq_len=48, prompts=2, refs=6, mask_refs=4, mask_size=32, kpt_refs=2,
            depth_refs=1, depth_size=32,
        ),
        mesh=MeshConfig(preset=preset, shape=(1, -1, 1, 1)),  # type: ignore[arg-type]
        optim=OptimConfig(lr=1e-3),
        train=TrainConfig(steps=5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled() -> tuple[Program, Compiled]:
    """The one compilation of this file."""
    program = trace_step(run_config(stacked()), jax.devices()[:8])
    answer = compile_step(program, POD)
    assert isinstance(answer, Compiled)
    return program, answer


def test_a_plan_holds_every_number_with_its_origin(
    compiled: tuple[Program, Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refvlm_jax.plan.report.compile_step", lambda program, pod: compiled[1])
    found = plan(run_config(stacked()), POD)
    assert found["fits"] and found["mesh"] == {"replica": 1, "fsdp": 8, "seq": 1, "tensor": 1}
    for section in ("memory", "flops", "time", "data", "cost"):
        entries = [e for e in found[section].values() if isinstance(e, dict) and "value" in e]
        assert entries and all(e["how"] and e["value"] >= 0 for e in entries), section
    assert {"llama", "logits", "vision", "projector"} <= set(found["flops"]["by_module"])
    assert {op["op"] for op in found["collectives"]["ops"]} >= {"all-gather", "all-reduce"}
    assert all(op["axes"] == ["fsdp"] for op in found["collectives"]["ops"])
    memory = {k: e["value"] for k, e in found["memory"].items() if k != "by_module"}
    parts = sum(memory[k] for k in ("params", "frozen", "optimizer", "batch", "activations"))
    assert parts == pytest.approx(memory["peak"])
    assert found["time"]["step_bound"]["value"] <= found["time"]["step_serial"]["value"]


def test_all_gathers_are_those_of_the_fsdp_formula(compiled: tuple[Program, Compiled]) -> None:
    """Every sharded weight of the stack is gathered in the forward and in the backward pass."""
    program, answer = compiled
    found = collectives(answer.text, dict(program.mesh.shape))
    stack = [
        leaf
        for name, leaf in program.plan.state.params.items()
        if name.startswith("llama.blocks.") and not leaf.sharding.is_fully_replicated
    ]
    expected = 2 * 4 * sum(math.prod(leaf.shape) for leaf in stack)
    gathered = sum(c.payload for c in found.ops if c.op == "all-gather")
    assert found.unknown_loops == 0
    assert gathered == pytest.approx(expected, rel=0.05)


def test_a_well_sharded_step_gives_no_warnings(compiled: tuple[Program, Compiled]) -> None:
    program, answer = compiled
    found = collectives(answer.text, dict(program.mesh.shape))
    assert whole_parameters(program) == [] == gathers(program, found)


def test_nothing_is_gathered_over_all_devices_beside_a_tensor_axis() -> None:
    tower = ConvNextConfig(image_size=64, depths=(2,), dims=(64,))
    config = dataclasses.replace(
        run_config(dataclasses.replace(stacked(2), tower=tower)),
        mesh=MeshConfig(preset="fsdp_tp", shape=(1, -1, 1, 2)),
    )
    program = trace_step(config, jax.devices()[:8])
    answer = compile_step(program, POD)
    assert isinstance(answer, Compiled)
    found = collectives(answer.text, dict(program.mesh.shape))
    # Parameters are gathered over fsdp, feature maps over tensor; a tower's activations never.
    assert {op.axes for op in found.ops if op.op == "all-gather"} <= {("fsdp",), ("tensor",)}


def test_badly_sharded_steps_are_named(
    compiled: tuple[Program, Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, _ = compiled
    monkeypatch.setattr("refvlm_jax.plan.lint.LARGE", 64)
    assert any(
        "llama.norm.scale (64,) is whole on every device" in line
        for line in whole_parameters(program)
    )
    more = Collective("all-gather", ("fsdp",), 8, 1, 2 * expected_gathers(program) + 64)
    (warning,) = gathers(program, Collectives((more,), 0))
    assert "some activation is gathered" in warning


def test_state_bytes_are_the_arguments_of_the_compiled_program(
    compiled: tuple[Program, Compiled],
) -> None:
    program, answer = compiled
    state = state_bytes(program.plan, program.config, program.mesh)
    assert state.total == pytest.approx(answer.arguments, rel=0.02)


def test_the_estimate_follows_the_compiled_peak(compiled: tuple[Program, Compiled]) -> None:
    program, answer = compiled
    assert 0.4 < estimate(program.config, 8).peak / answer.peak < 2.5


def test_an_impossible_batch_does_not_fit() -> None:
    config = run_config(stacked(), rows=8 * 2**17)
    found = plan(config, POD, analytic=True)
    assert not found["fits"] and found["verdict"].startswith("does not fit")
    assert "GiB of 2.00 GiB" in found["verdict"] and " in " in found["verdict"]
    assert found["largest"][0]["bytes"] >= found["largest"][-1]["bytes"] > 0


def test_every_preset_has_its_estimate() -> None:
    shapes = {
        "fsdp": (1, 8, 1, 1), "hsdp": (2, 4, 1, 1), "fsdp_tp": (1, 4, 1, 2), "fsdp_seq": (1, 4, 2, 1),
    }  # fmt: skip
    assert set(shapes) == set(PRESETS) - {"single"}
    whole = estimate(run_config(stacked(), preset="single"), 1).state.params
    for preset, shape in shapes.items():
        mesh = MeshConfig(preset=preset, shape=shape)  # type: ignore[arg-type]
        found = estimate(dataclasses.replace(run_config(stacked()), mesh=mesh), 8)
        assert found.state.params < whole and found.activations.bytes > 0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_answering_is_planned_like_training(phase: Phase) -> None:
    """Compiled for eight devices: memory is weights and cache, and work is what the phase does."""
    mesh = MeshConfig(preset="fsdp_tp", shape=(1, 4, 1, 2))
    config = dataclasses.replace(
        run_config(stacked(4)), mesh=mesh, eval=EvalConfig(batch_size=8, max_new_tokens=16)
    )
    found, llama = plan(config, POD, phase=phase), config.model.llama
    assert found["fits"] and found["phase"] == phase and found["method"] == "compiled"
    memory = {k: e["value"] for k, e in found["memory"].items() if k != "by_module"}
    # Rows over fsdp, heads over tensor; float32, and what a position and its mask take.
    slots = 8 * (48 + 16)
    values = 2 * llama.layers * slots * llama.kv_heads * llama.head_dim * 4 / 8
    assert memory["cache"] == values + slots * (4 + 1) / 4
    assert memory["params"] == memory["optimizer"] == 0 < memory["frozen"]
    assert memory["peak"] >= memory["frozen"] + memory["cache"]
    assert memory["estimate"] == pytest.approx(memory["peak"], rel=0.6)
    a_token = 2 * 8 * llama.layers * 3 * llama.width * llama.mlp_dim / 8
    work = found["flops"]["model"]["value"] / a_token
    assert (1 < work < 3) if phase == "decode" else (48 < work < 48 * 4)
    assert found["data"]["speed_bound"]["value"] > 0


def test_answering_rows_must_divide_over_the_mesh() -> None:
    config = dataclasses.replace(run_config(stacked()), eval=EvalConfig(batch_size=6))
    with pytest.raises(ConfigError, match=r"eval\.batch_size = 6 .* multiple of 8"):
        plan(config, POD, analytic=True, phase="decode")
