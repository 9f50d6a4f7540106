"""The two-way adapter against recorded PyTorch numbers, and rows that do not see each other.

The reference is right for one row only, so that is what is recorded; the other tests say that more
rows give each the same.
"""

import dataclasses
import json

import golden_vision
import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_golden_box_mask import fill_text, pixel_boxes

from refvlm_jax.batch import BatchSpec, empty_row
from refvlm_jax.config import model as cfg
from refvlm_jax.models.adapter import (
    Adapted,
    AdapterTable,
    TwoWayAdapter,
    adapter_table,
    patch_states,
    phrase_spans,
)
from refvlm_jax.models.placement import pixel_mask
from refvlm_jax.models.units.box import BoxUnit
from refvlm_jax.models.units.losses import box_loss_sums, mask_loss_sums
from refvlm_jax.models.units.mask import MaskUnit
from refvlm_jax.train.model_def import define
from refvlm_jax.trp.tokens import PHRASE_CLOSE, PHRASE_OPEN, REF

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not (golden_vision.GOLDEN / "refvlm_adapter_box.config.json").exists(),
        reason="no golden bundle",
    ),
]
GRID, SIZE, WIDTH, REFS = 6, 84, 64, 5


@dataclasses.dataclass
class Bundle:
    config: dict
    tensors: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    adapter: TwoWayAdapter
    row: dict[str, np.ndarray]

    def inputs(self) -> tuple[jax.Array, jax.Array, AdapterTable]:
        """States, patch states and table of the recorded row."""
        hidden = jnp.asarray(self.tensors["out.llm_last_hidden"])
        row = {name: jnp.asarray(value)[None] for name, value in self.row.items()}
        return hidden, *tables(self, hidden, row)

    def close(self, found: np.ndarray, name: str) -> None:
        want = self.tensors[f"out.{name}"]
        np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max(), rtol=0)


def tables(bundle: Bundle, hidden: jax.Array, row: dict) -> tuple[jax.Array, AdapterTable]:
    ids = bundle.config["special_token_ids"]
    refs = (row["ref_pos"], row["ref_group"], row["ref_valid"])
    spans = phrase_spans(row["tokens"], *refs, open_id=ids[PHRASE_OPEN], close_id=ids[PHRASE_CLOSE])
    table = adapter_table(spans, refs[0], refs[1], row["ref_image"], refs[2], bundle.adapter.config)
    return patch_states(hidden, row["visual_index"], 1, GRID**2), table


def load(name: str) -> Bundle:
    path = golden_vision.GOLDEN / name
    c = json.loads(path.with_suffix(".config.json").read_text())
    t = load_file(path.with_suffix(".tensors.safetensors"))
    w = load_file(path.with_suffix(".weights.safetensors"))
    a = c["vd_adapter"]
    found = golden_vision.adapter(w, a["num_layers"])
    config = cfg.AdapterConfig(
        groups=4,
        phrase_length=a["phrase_max_length"],
        ref_length=a["ref_max_length"],
        projection_dim=found["image.fc1.bias"].shape[0],
        layers=a["num_layers"],
        heads=a["n_heads"],
        mlp_dim=a["d_ffn"],
    )
    model = define(lambda rngs: TwoWayAdapter(config, a["d_model"], rngs))
    assert {k: v.shape for k, v in found.items()} == model.shapes
    adapter = model.merge({k: jnp.asarray(v) for k, v in found.items()})
    spec = BatchSpec(
        seq_len=t["out.llm_last_hidden"].shape[1],
        image_size=SIZE,
        image_tokens=GRID**2,
        prompts=2,
        refs=REFS,
        mask_refs=1,
        mask_size=1,
    )
    row = empty_row(spec)
    fill_text(row, t["in.input_ids"][0], t["in.labels"][0], t["in.attention_mask"][0], spec)
    at = np.flatnonzero(row["tokens"] == c["special_token_ids"][REF])
    groups = [g for g, seq in enumerate(c["decode_seqs"][0]) for _ in seq]
    row["ref_pos"][: len(at)], row["ref_group"][: len(at)] = at, groups
    row["ref_valid"][: len(at)] = True
    return Bundle(c, t, w, adapter, row)


@pytest.fixture(scope="module")
def box() -> Bundle:
    return load("refvlm_adapter_box")


@pytest.fixture(scope="module")
def mask() -> Bundle:
    return load("refvlm_adapter_mask")


def unit(bundle: Bundle, name: str) -> BoxUnit | MaskUnit:
    """The bundle's decoder; as recorded, its empty slots hold zeros after the projection."""
    d = bundle.config["visual_decoder"][name]
    kind, config_kind = {
        "box": (BoxUnit, cfg.BoxUnitConfig),
        "mask": (MaskUnit, cfg.MaskUnitConfig),
    }[name]
    config = config_kind(
        num_queries=d["num_queries"],
        features=tuple(d["encoder_input_index"]),
        width=d["d_model"],
        layers=d["decoder_layers"],
        heads=d["decoder_attention_heads"],
        mlp_dim=d["decoder_ffn_dim"],
        empty_queries="zero",
    )
    layers, laterals = d["decoder_layers"], len(d["encoder_input_index"]) - 1
    found = (
        golden_weights.box(bundle.weights, layers)
        if name == "box"
        else golden_weights.mask(bundle.weights, layers, laterals)
    )
    model = define(lambda rngs: kind(config, (32, 32, 32, 32, WIDTH), WIDTH, rngs))
    assert {k: v.shape for k, v in found.items()} == model.shapes
    return model.merge({k: jnp.asarray(v) for k, v in found.items()})


def decode(bundle: Bundle, name: str, adapted: Adapted) -> jax.Array:
    """The decoder on the adapted states and on maps whose last one is the adapted picture."""
    decoder = unit(bundle, name)
    slots, count = decoder.config.num_queries, adapted.states.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, slots - count)) + ((0, 0),) * (x.ndim - 2))  # noqa: E731
    rows = len(adapted.states)
    hidden = [bundle.tensors[f"out.clip_hidden_{k}"][:, 1:] for k in range(4)]
    maps = [jnp.repeat(jnp.asarray(h).reshape(1, GRID, GRID, -1), rows, 0) for h in hidden]
    return decoder(pad(adapted.states), pad(adapted.valid), (*maps, adapted.maps))


@pytest.mark.parametrize("name", ["box", "mask"])
def test_states_and_pictures(name: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(name)
    adapted = jax.jit(bundle.adapter)(*bundle.inputs())
    count = int(bundle.tensors["out.adapter_ref_mask"].sum())
    assert adapted.valid.tolist() == [[True] * count + [False] * (REFS - count)]
    bundle.close(adapted.states[:, :count], "adapter_ref_hidden_states")
    bundle.close(adapted.maps.reshape(1, GRID**2, WIDTH), "adapter_image_embeddings")


def test_boxes_and_their_loss(box: Bundle) -> None:
    adapted = box.adapter(*box.inputs())
    boxes = decode(box, "box", adapted)
    box.close(boxes, "box_box_logits")
    config = cfg.BoxUnitConfig()
    sums = box_loss_sums(
        boxes[:, :3],
        jnp.asarray(box.tensors["in.boxes_cxcywh"])[None],
        jnp.asarray(box.row["ref_group"])[None, :3],
        jnp.ones((1, 3), bool),
        config,
    )
    cost = config.bbox_weight * sums["box_l1"] + config.giou_weight * sums["box_giou"]
    np.testing.assert_allclose(cost / 3, box.tensors["loss.box_cost"][0], rtol=1e-5)


def test_masks_and_their_loss(mask: Bundle) -> None:
    adapted = mask.adapter(*mask.inputs())
    logits = decode(mask, "mask", adapted)[:, :2]
    mask.close(logits[0], "mask_preds")
    config, truth = cfg.MaskUnitConfig(), mask.tensors["in.masks"]
    boxes = pixel_boxes(mask.tensors["in.pixel_masks"], SIZE)
    pixels = pixel_mask(jnp.asarray(boxes), truth.shape[-1], SIZE)
    np.testing.assert_array_equal(pixels[0], mask.tensors["in.pixel_masks"])
    sums = mask_loss_sums(
        logits,
        jnp.asarray(truth)[None],
        jnp.zeros((1, 2), jnp.int32),
        jnp.ones((1, 2), bool),
        jnp.repeat(pixels, 2, axis=1),
        config,
    )
    cost = config.focal_weight * sums["mask_focal"] + config.dice_weight * sums["mask_dice"]
    np.testing.assert_allclose(cost / 2, mask.tensors["loss.mask_cost"][0], rtol=1e-5)


def stranger(bundle: Bundle) -> dict[str, np.ndarray]:
    """Another row of the same length: one phrase fewer, one reference more."""
    row = {name: value.copy() for name, value in bundle.row.items()}
    at = row["ref_pos"][:3]
    row["ref_pos"][:4] = [at[0], at[1], at[1] + 1, at[2] + 1]
    row["ref_group"][:4], row["ref_valid"][:4] = 0, True
    return row


def test_a_row_of_a_batch_gets_what_it_gets_alone(box: Bundle) -> None:
    """Both ways round: the reference gave every row the references of the first."""
    rows = [box.row, stranger(box)]
    states = np.random.default_rng(0).normal(size=(2, *box.tensors["out.logits"].shape[1:2], WIDTH))
    states[0] = box.tensors["out.llm_last_hidden"][0]

    def run(order: list[int]) -> tuple[Adapted, jax.Array]:
        hidden = jnp.asarray(states[order], jnp.float32)
        row = {k: jnp.asarray(np.stack([rows[i][k] for i in order])) for k in rows[0]}
        adapted = box.adapter(hidden, *tables(box, hidden, row))
        return adapted, decode(box, "box", adapted)

    alone = [run([0]), run([1])]
    for order in ([0, 1], [1, 0]):
        adapted, boxes = run(order)
        for place, i in enumerate(order):
            want, want_boxes = alone[i]
            np.testing.assert_array_equal(adapted.valid[place], want.valid[0])
            np.testing.assert_allclose(adapted.states[place], want.states[0], atol=1e-5)
            np.testing.assert_allclose(adapted.maps[place], want.maps[0], atol=1e-5)
            np.testing.assert_allclose(boxes[place], want_boxes[0], atol=1e-6)
    assert np.abs(alone[0][0].maps - alone[1][0].maps).max() > 0.1


def test_generation_sees_the_picture_that_training_saw(box: Bundle) -> None:
    """Prompt and answer apart, without labels: the reference saw zeros for the picture here."""
    hidden, patches, table = box.inputs()
    first = int(np.flatnonzero(box.row["labels"] != -100)[0])
    index = jnp.asarray(box.row["visual_index"])[None, :first]
    found = patch_states(hidden[:, :first], index, 1, GRID**2)
    np.testing.assert_array_equal(found, patches)
    assert np.abs(patches).max(-1).min() > 0
    # References and phrases are read one position earlier, so one prompt state precedes the answer.
    shift = lambda x: jnp.where(x >= 0, x - first + 1, x)  # noqa: E731
    answer = dataclasses.replace(table, refs=shift(table.refs), phrase=shift(table.phrase))
    trained = box.adapter(hidden, patches, table)
    generated = box.adapter(hidden[:, first - 1 :], found, answer)
    np.testing.assert_allclose(generated.states, trained.states, atol=1e-6)
    np.testing.assert_allclose(generated.maps, trained.maps, atol=1e-6)
