"""Recipes of the published stages: resolved values against a golden file, sizes, what each trains.

`python tests/unit/test_stage_recipes.py` rewrites the golden file; look at its diff before committing.
"""

import json
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from refvlm_jax.cli.run import build_model
from refvlm_jax.config.resolve import diff, load_config, resolve, to_dict
from refvlm_jax.config.schema import RunConfig
from refvlm_jax.train.model_def import define
from refvlm_jax.train.optim import check_groups, is_trainable

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "stage_recipes.json"
RECIPES = sorted(p.stem for p in (ROOT / "configs").glob("s*_*.py") if "shapes" not in p.name)
LANGUAGE_MODELS = ("vicuna7b", "llama3_8b", "mistral_7b")


def load(name: str) -> RunConfig:
    return load_config(ROOT / "configs" / f"{name}.py")


def resolved(name: str) -> dict[str, object]:
    """Dotted fields that differ from the defaults of the schema."""
    config = load(name)
    plain = to_dict(RunConfig(name=""))
    return {field: own for field, (_, own) in diff(plain, to_dict(config)).items()}


def counts(name: str) -> dict[str, int]:
    """Parameters by part of the model, and how many of all are trained; padding left out."""
    config = load(name)
    llama = replace(config.model.llama, vocab_padding=0)
    config = replace(config, model=replace(config.model, llama=llama))
    model = define(partial(build_model, config))
    check_groups(config.optim, list(model.axes))
    found: dict[str, int] = {"trained": 0}
    for dotted, shape in model.shapes.items():
        part, size = dotted.split(".")[0], math.prod(shape)
        found[part] = found.get(part, 0) + size
        found["trained"] += size * is_trainable(config.optim)(dotted)
    return found


def test_every_stage_has_its_recipes() -> None:
    stages = ("stage1", "stage2", "stage2_lora", "sft", "stage3_keypoint")
    wanted = {f"{stage}_{model}" for stage in stages for model in LANGUAGE_MODELS}
    wanted |= {"stage3_sam_vicuna7b", "stage2_adapter_vicuna7b", "stage2_1b", "stage2_lora_1b"}
    assert set(RECIPES) == wanted


@pytest.mark.parametrize("name", RECIPES)
def test_resolved_values_are_the_golden_ones(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    assert resolved(name) == golden
    config = load(name)
    assert config.name == name
    assert resolve(to_dict(config)) == config


def test_sizes_of_the_published_model() -> None:
    """Counts of the released checkpoints, and of the parts each stage trains."""
    found = counts("stage2_vicuna7b")
    # The released mask decoder stores 30 query codes that nothing reads.
    projector, prompts, box, mask = 20_979_712, 12_288, 11_286_532, 16_063_488 - 30 * 256
    llama = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32010 * 4096 + 4096
    # Norms behind the last states that are read are not built.
    post_norms = (2 * 1024, 2 * 1536)
    assert found["vision"] == 303_507_456 - post_norms[0]
    assert found["tower"] == 196_230_336 - post_norms[1]
    assert (found["projector"], found["region_prompts"]) == (projector, prompts)
    assert (found["box"], found["mask"], found["llama"]) == (box, mask, llama)
    assert found["trained"] == llama + projector + prompts + box + mask
    assert counts("stage1_vicuna7b")["trained"] == projector


def test_low_rank_adapters_are_what_the_language_model_trains() -> None:
    config = load("stage2_lora_mistral_7b")
    model = define(partial(build_model, config))
    trained = is_trainable(config.optim)
    llama = [n for n in model.shapes if n.startswith("llama.") and trained(n)]
    assert {re.sub(".*[.]", "", n) for n in llama} == {"lora_a", "lora_b", "embedding", "lm_head"}
    assert not trained("vision.position") and trained("box.head.layers.0.kernel")


@pytest.mark.parametrize("language_model", ["vicuna7b", "llama3_8b"])
def test_ids_of_the_phrase_tags_follow_the_vocabulary(language_model: str) -> None:
    from configs import stages

    config = resolve(stages.stage2_adapter(language_model))  # type: ignore[arg-type]
    assert config.model.adapter is not None
    assert config.model.adapter.phrase_ids[1] == config.model.llama.vocab_size - 3


if __name__ == "__main__":
    golden = {name: resolved(name) for name in RECIPES}
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")
