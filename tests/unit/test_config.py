"""Recipes, overrides and the errors they can cause."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import diff, fingerprint, load_config, resolve, to_dict
from refvlm_jax.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]


def base(**sections):
    return {"name": "run", "data": {"path": "d"}, **sections}


def test_config_dict_and_mapping_resolve_alike():
    tree = base(optim={"lr": 1, "groups": [{"pattern": "vision", "frozen": True}]})
    config = resolve(ConfigDict(tree))
    assert config == resolve(tree)
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.optim.groups[0].frozen
    assert config.model.llama.width == 4096


def test_none_removes_an_optional_part_and_a_mapping_adds_one():
    config = resolve(base(model={"mask": None, "llama": {"lora": {"rank": 4}}}))
    assert config.model.mask is None
    assert config.model.llama.lora.rank == 4


def test_optional_parts_are_mappings_and_survive_a_round_trip():
    units = {name: {"features": [0, 1, 2, 4]} for name in ("box", "mask")}
    config = resolve(base(model={**units, "tower": {"image_size": 320}, "adapter": {}}))
    assert config.model.tower.image_size == 320 and config.model.tower.dims[-1] == 1536
    assert config.model.adapter.phrase_ids == (32006, 32007) and config.model.sam is None
    assert resolve(to_dict(config)) == config
    sam = {"encoder": {"width": 768, "layers": 12, "heads": 12, "global_layers": [2, 5, 8, 11]}}
    config = resolve(base(model={"mask": None, "sam": sam}))
    assert config.model.mask_unit == config.model.sam and config.model.sam.num_queries == 100
    assert config.model.sam.encoder.global_layers == (2, 5, 8, 11)


def test_a_tokenizer_with_other_phrase_tags_is_refused():
    from data_pipelines.tokenizer import load_tokenizer
    from refvlm_jax.cli.data_setup import tokenizer_of

    own = load_tokenizer()
    ids = [own.id_of("<Phrase>"), own.id_of("</Phrase>")]
    assert tokenizer_of(resolve(base(model={"adapter": {"phrase_ids": ids}})))
    with pytest.raises(
        ValueError, match=r"model\.adapter\.phrase_ids is \(32006, 32007\), but <Ph"
    ):
        tokenizer_of(resolve(base(model={"adapter": {}})))


def test_a_batch_has_slots_of_the_units_that_the_model_has():
    from refvlm_jax.cli.run import batch_spec

    data = {"path": "d", "kpt_refs": 4, "depth_refs": 1, "depth_size": 48}
    both = {"keypoint": {"sigmas": [0.1] * 5}, "depth": {}}
    spec = batch_spec(resolve(base(data=data, model=both)))
    assert (spec.kpt_refs, spec.kpt_points, spec.depth_refs, spec.depth_size) == (4, 5, 1, 48)
    spec = batch_spec(resolve(base(data=data)))
    sizes = {name: shape for name, (shape, _) in spec.fields(8).items()}
    assert not any(0 not in sizes[name] for name in ("keypoints", "depth", "depth_relative"))


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"optim": {"learning": 1}}, ["optim.learning"]),
        ({"optim": {"warmup_step": 1}}, ["optim.warmup_step", '"warmup_steps"']),
        ({"trian": {}}, ["trian", '"train"']),
        ({"train": {"steps": "10"}}, ["train.steps", "integer", "'10'"]),
        ({"train": {"steps": True}}, ["train.steps", "integer"]),
        ({"train": {"steps": 0}}, ["train.steps", "positive"]),
        ({"train": {"steps": 10.0}}, ["train.steps", "integer"]),
        ({"optim": {"lr": -1.0}}, ["optim.lr", "negative"]),
        ({"optim": {"lr": float("nan")}}, ["optim.lr", "finite"]),
        ({"optim": {"beta2": 1.0}}, ["optim.beta2", "below 1"]),
        ({"optim": {"schedule": "cosin"}}, ["optim.schedule", '"cosine"']),
        ({"optim": {"decay_ratio": 0.0}}, ["optim.decay_ratio", "positive"]),
        ({"optim": {"decay_ratio": 1.5}}, ["optim.decay_ratio", "at most 1"]),
        ({"optim": {"groups": [{"pattern": "("}]}}, ["optim.groups[0].pattern", "regular"]),
        ({"optim": {"groups": [{"patern": "a"}]}}, ["optim.groups[0].patern", '"pattern"']),
        ({"optim": {"groups": [{}]}}, ["optim.groups[0].pattern", "required"]),
        ({"optim": {"warmup_steps": 2000}}, ["optim.warmup_steps", "train.steps"]),
        ({"optim": {"loss_weights": {"box": -1}}}, ["optim.loss_weights.box", "negative"]),
        ({"train": {"accumulate": 3}}, ["data.batch_size = 8", "train.accumulate = 3", "6 or 9"]),
        ({"mesh": {"preset": "fsdp", "shape": (1, -1, 1)}}, ["mesh.shape", "3 entries"]),
        ({"mesh": {"preset": "fsdp", "shape": (-1, -1, 1, 1)}}, ["mesh.shape", "one axis"]),
        ({"mesh": {"shape": (1, 2, 1, 1)}}, ["mesh.shape", "'single'"]),
        ({"mesh": {"preset": "fsdp", "shape": (1, 3, 1, 1)}}, ["data.batch_size", "3"]),
        ({"model": {"vision": {"heads": 3}}}, ["model.vision.width = 1024", "= 3"]),
        ({"model": {"llama": None}}, ["model.llama", "mapping"]),
        ({"model": {"vision": {"stem_channels": 3}}}, ["model.vision.stem_channels", "list"]),
        ({"data": 3}, ["data", "mapping"]),
        ({"model": {"keypoint": {}}}, ["data.kpt_refs = 0", "model.keypoint"]),
        ({"model": {"depth": {}}}, ["data.depth_refs = 0", "model.depth"]),
        ({"model": {"keypoint": {"box": {"heads": 3}}}}, ["model.keypoint.box.width = 256"]),
        ({"model": {"depth": {"norm_groups": 3}}}, ["model.depth.width = 256", "norm_groups"]),
        ({"model": {"depth": {"min_depth": 90.0}}}, ["model.depth.min_depth = 90.0", "80.0"]),
        ({"model": {"sam": {}}}, ["model.mask and model.sam", "model.mask to None"]),
        ({"model": {"mask": None, "sam": {"chunk": 7}}}, ["model.sam.num_queries = 100", "= 7"]),
        (
            {"model": {"mask": None, "sam": {"encoder": {"global_layers": (3, 1)}}}},
            ["model.sam.encoder.global_layers = (3, 1)", "0..31"],
        ),
        ({"model": {"tower": {}}}, ["model.box.features = (8, 16, 23)", "5 feature maps"]),
        ({"model": {"box": {"features": (25,)}}}, ["model.box.features", "25 feature maps"]),
        ({"model": {"tower": {"depths": (1,)}}}, ["model.tower.depths = (1,)", "model.tower.dims"]),
        ({"model": {"tower": {"image_size": 500}}}, ["model.tower.image_size = 500", "480 or 512"]),
        ({"model": {"adapter": {"heads": 3}}}, ["model.llama.width = 4096", "adapter.heads = 6"]),
        ({"model": {"adapter": {"phrase_ids": (1, 99999)}}}, ["model.adapter.phrase_ids", "32010"]),
        (
            {"model": {"adapter": {}}, "data": {"path": "d", "shared_picture": True}},
            ["data.shared_picture", "model.adapter = None"],
        ),
    ],
)
def test_errors_name_the_field(sections, parts):
    with pytest.raises(ConfigError) as caught:
        resolve(base(**sections))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_name_is_reported():
    with pytest.raises(ConfigError, match="name is required"):
        resolve({})


RECIPE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({"name": arg or "plain", "data": {"path": "d"}, "model": {"mask": None}})
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE)
    return str(file)


def test_overrides_reach_fields_the_recipe_leaves_out(recipe):
    config = load_config(
        f"{recipe}:big", ["optim.lr=3e-4", "data.register=coord", "mesh.shape=(1, 1, 1, 1)"]
    )
    assert (config.name, config.optim.lr) == ("big", 3e-4)
    assert config.data.register == "coord"
    assert config.mesh.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "field.name=value"),
        ("optim.lrr=1", "optim.lrr"),
        ("model.mask.width=8", "model.mask is None"),
        ("ckpt.async_save=true", "ckpt.async_save must be a bool"),
    ],
)
def test_bad_overrides(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


def test_bad_recipe_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(ConfigError, match="get_config"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        load_config(tmp_path / "broken.py")


@given(lr=st.floats(1e-8, 1.0), steps=st.integers(1, 10**6), mask=st.booleans())
def test_to_dict_round_trips_through_json(lr, steps, mask):
    tree = base(optim={"lr": lr}, train={"steps": steps}, model={} if mask else {"mask": None})
    config = resolve(tree)
    again = resolve(json.loads(json.dumps(to_dict(config))))
    assert again == config and fingerprint(again) == fingerprint(config)
    assert diff(config, again) == {}


def test_diff_names_changed_fields():
    a, b = resolve(base()), resolve(base(optim={"lr": 1.0}, data={"weights": {"T01": 2.0}}))
    changed = diff(a, b)
    assert changed["optim.lr"] == (1e-4, 1.0)
    assert changed["data.weights.T01"] == (None, 2.0)
    assert fingerprint(a) != fingerprint(b)


def test_every_field_is_documented():
    """A bare string follows each field of our dataclasses."""
    import ast

    tree = ast.parse((ROOT / "refvlm_jax/config/schema.py").read_text())
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id}"
    assert {f.name for f in dataclasses.fields(RunConfig)} >= {"model", "data", "mesh", "optim"}


def test_config_does_not_import_jax():
    code = "import sys, refvlm_jax.config.resolve; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
