"""Answers on a mesh of eight devices are those of one."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from refvlm_jax.cli.predict import make_engine
from refvlm_jax.cli.run import batch_spec, build_model
from refvlm_jax.config.errors import ConfigError
from refvlm_jax.config.resolve import load_config
from refvlm_jax.config.schema import MeshConfig, RunConfig
from refvlm_jax.infer.engine import Request
from refvlm_jax.testing.tiny import random_batch
from refvlm_jax.train.model_def import define
from refvlm_jax.trp.tokens import Unit

pytestmark = pytest.mark.multidevice
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.vision.layers=1", "model.llama.layers=1", "model.llama.heads=4", "model.llama.kv_heads=4",
    "model.box.layers=1", "model.mask=None", "data.seq_len=192", "data.refs=4", "data.mask_refs=0",
    "eval.batch_size=8", "eval.max_new_tokens=12",
]  # fmt: skip


def test_answers_are_those_of_one_device() -> None:
    config = load_config(ROOT / "configs" / "shapes_tiny.py", SMALL)
    model = define(lambda rngs: build_model(config, rngs))
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    batch = random_batch(batch_spec(config), 8, seed=0, vocab=config.model.llama.vocab_size)
    requests = [Request(width=64, height=48, unit=Unit.BOX)] * 8
    mesh = MeshConfig(preset="fsdp_tp", shape=(1, -1, 1, 2))
    answers = [
        make_engine(run, params).answer(batch, requests)
        for run in (config, dataclasses.replace(config, mesh=mesh))
    ]
    for one, many in zip(*answers, strict=True):
        assert one.text.text == many.text.text
        assert len(one.references) == len(many.references)
        for a, b in zip(one.references, many.references, strict=True):
            np.testing.assert_allclose(a.box, b.box, atol=1e-3)


def test_weights_are_spread_in_the_compute_dtype() -> None:
    config: RunConfig = load_config(
        ROOT / "configs" / "shapes_tiny.py",
        [*SMALL, "mesh.preset=fsdp", "mesh.shape=(1,-1,1,1)", "train.compute_dtype=bfloat16"],
    )
    model = define(lambda rngs: build_model(config, rngs))
    params = {name: np.zeros(shape, np.float32) for name, shape in model.shapes.items()}
    kernel = make_engine(config, params).params["llama.embedding"]
    assert kernel.dtype == jax.numpy.bfloat16
    assert kernel.addressable_shards[0].data.nbytes * 8 == kernel.nbytes
    odd = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=6))
    with pytest.raises(ConfigError, match="use a multiple of 8"):
        make_engine(odd, params)
