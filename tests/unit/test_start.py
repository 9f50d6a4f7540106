"""Starting a run from PyTorch weights, imported checkpoints and earlier runs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from refvlm_jax.ckpt.convert.import_ import import_weights
from refvlm_jax.ckpt.convert.orbax_io import open_checkpoint
from refvlm_jax.ckpt.items import CheckpointError
from refvlm_jax.ckpt.manager import load_params
from refvlm_jax.cli.run import build_model
from refvlm_jax.config.resolve import resolve
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.testing.torch_layout import tiny_config, write_released
from refvlm_jax.testing.toy import ToyModel, toy_batches, toy_config, toy_task
from refvlm_jax.train.loop import Status, fit, plan_state
from refvlm_jax.train.model_def import define
from refvlm_jax.train.start import check_sources, load_start

FROZEN = [{"pattern": "^vision[.]", "frozen": True}]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_released(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_weights([released], out)
    return out


def run_of(imported: Path, **model) -> RunConfig:
    """A run of the imported model, with other fields in its model section."""
    tree = dict(open_checkpoint(imported).meta["config"]["model"])
    for name, value in model.items():
        tree[name] = {**(tree[name] or {}), **value} if isinstance(value, dict) else value
    optim = {"groups": FROZEN}
    return resolve({"name": "start", "data": {"kpt_refs": 1}, "optim": optim, "model": tree})


def started(config: RunConfig, *sources: Path, fresh: tuple[str, ...] = ()):
    """First values by name, and what was reported."""
    plan, said = plan_state(config, define(partial(build_model, config))), []
    start_from = tuple(map(str, sources))
    ckpt = replace(config.ckpt, start_from=start_from, start_fresh=fresh)
    return load_start(plan, ckpt, config.model, said.append), said


def test_pytorch_weights_and_their_import_are_the_same_start(released, imported) -> None:
    want = load_params(imported)
    for source in (released, imported):
        found, said = started(run_of(imported), source)
        assert found.keys() == want.keys() and not said
        for name, value in want.items():
            np.testing.assert_array_equal(found[name], np.asarray(value, found[name].dtype), name)


def test_new_tokens_and_padding_are_rows_behind_the_old_ones(imported) -> None:
    old = load_params(imported)
    tokens = old["llama.embedding"].shape[0]
    config = run_of(imported, llama={"vocab_size": tokens + 10, "vocab_padding": 9})
    found, _ = started(config, imported)
    table, head = found["llama.embedding"], found["llama.lm_head"]
    assert table.shape[0] == head.shape[1] == tokens + 19
    np.testing.assert_array_equal(table[:tokens], old["llama.embedding"])
    np.testing.assert_array_equal(head[:, :tokens], old["llama.lm_head"])
    assert 0.01 < float(jnp.std(table[tokens:])) < 0.03
    with pytest.raises(CheckpointError, match=rf"{tokens} tokens, more than .* = {tokens - 1}"):
        started(run_of(imported, llama={"vocab_size": tokens - 1}), imported)


def test_what_no_source_has_starts_from_scratch_and_is_named(imported, tmp_path) -> None:
    config, parts = run_of(imported), tmp_path / "released"
    write_released(parts, tiny_config())
    for folder in ("box_decoder", "pose_decoder"):
        for file in (parts / folder).iterdir():
            file.unlink()
        (parts / folder).rmdir()
    found, said = started(config, parts)
    assert not any(name.startswith(("box.", "keypoint.")) for name in found)
    assert any("from scratch: box (" in line and "keypoint (" in line for line in said)
    again, said = started(config, imported, fresh=("^mask[.]",))
    assert not any(name.startswith("mask.") for name in again)
    assert any("mask" in line for line in said)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vision": {"layers": 7}}, r"vision\.blocks.*model needs \(7"),
        ({"llama": {"mlp_dim": 80}}, r"llama\..*model needs .*80"),
    ],
)
def test_a_source_of_another_model_is_refused(imported, model, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        started(run_of(imported, **model), imported)


def test_what_the_model_has_no_place_for_is_named(imported) -> None:
    found, said = started(run_of(imported, llama={"tie_embeddings": True}), imported)
    assert "llama.lm_head" not in found and any("not used: llama (1 arr" in s for s in said)


def test_frozen_and_half_given_parts_must_have_a_source(imported, tmp_path) -> None:
    config = run_of(imported)
    write_released(tmp_path / "parts", tiny_config())
    for file in (tmp_path / "parts" / "visual_encoder").iterdir():
        file.unlink()
    (tmp_path / "parts" / "visual_encoder").rmdir()
    with pytest.raises(CheckpointError, match=r"frozen parameter vision\."):
        started(config, tmp_path / "parts")
    found, said = started(config, tmp_path / "parts", fresh=("^vision[.]",))
    assert "llama.embedding" in found and not said


def test_adapters_start_from_scratch_but_are_never_dropped(imported, tmp_path) -> None:
    lora = run_of(imported, llama={"lora": {"rank": 2, "alpha": 4.0, "targets": ["q"]}})
    found, said = started(lora, imported)
    assert any("from scratch: llama (2 arrays)" in line for line in said)
    assert found and not any(".lora." in name for name in found)


def test_constants_of_a_new_part_are_drawn_with_it(imported) -> None:
    """The adapter's Fourier matrix is trained by nobody, and yet not frozen."""
    tokens = load_params(imported)["llama.embedding"].shape[0]
    config = run_of(imported, adapter={"phrase_ids": [tokens - 2, tokens - 1], "heads": 2})
    # The decoders read what the adapter adds to their maps.
    found, said = started(config, imported, fresh=("^(box|mask|keypoint)[.]",))
    assert not any(name.startswith("adapter.") for name in found)
    assert any("from scratch: adapter (" in line for line in said)


def test_a_run_starts_from_an_earlier_one(tmp_path) -> None:
    def train(folder: str, **ckpt):
        config = toy_config(train={"steps": 4}, ckpt=ckpt)
        return config, fit(
            config,
            toy_task(),
            ToyModel,
            lambda step: toy_batches(step, config.data.batch_size),
            tmp_path / folder,
            start=lambda plan, say: load_start(plan, config.ckpt, config.model, say),
            quiet=True,
        )

    _, first = train("first")
    config, _ = train("second", start_from=(str(tmp_path / "first"),))
    plan = plan_state(config, define(ToyModel))
    values = load_start(plan, config.ckpt, config.model)
    for name, value in first.state.params.items():
        np.testing.assert_array_equal(values[name], value, name)
    # Called again, the second run resumes; its source may be gone by then.
    config, done = train("second", start_from=(str(tmp_path / "nowhere"),))
    assert done.status is Status.ALREADY_DONE
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        check_sources(config.ckpt.start_from)
