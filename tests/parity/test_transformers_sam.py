"""Segment Anything against Hugging Face's SamModel: embedding, every kind of prompt, all masks."""

from dataclasses import replace

import golden_vision
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import prefixed

from refvlm_jax.ckpt.convert.part import parts
from refvlm_jax.ckpt.convert.verify.torch_names import SAM, renamed
from refvlm_jax.config.model import SAM_ENCODERS, SamEncoderConfig, SamUnitConfig
from refvlm_jax.models.sam.prompts import Click
from refvlm_jax.models.units.sam import SamUnit
from refvlm_jax.testing.torch_layout import tiny_config, torch_shapes
from refvlm_jax.train.model_def import define

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SIZE, GRID, WIDTH, OUT = 80, 10, 24, 16
CONFIG = SamUnitConfig(
    num_queries=4,
    chunk=2,
    encoder=SamEncoderConfig(
        image_size=SIZE,
        patch_size=SIZE // GRID,
        width=WIDTH,
        layers=4,
        heads=3,
        mlp_dim=40,
        global_layers=(0, 3),
        window=4,
        out_width=OUT,
        attention_block=25,
    ),
    heads=4,
    mlp_dim=20,
    iou_hidden=12,
    mask_prompt_channels=8,
)


def released_names() -> dict[str, str]:
    """Hugging Face's name of every tensor -> that of SAM's own release."""
    (part,) = (part for part in parts() if part.name == "sam")
    shapes = torch_shapes(replace(tiny_config(), sam=CONFIG), part)
    own = {key.removeprefix("sam.") for key in shapes if key.startswith("sam.")}
    return {theirs: key for key in own for theirs in renamed({key: np.empty(0)}, SAM)}


def hugging_face(**vision: object) -> "transformers.SamModel":
    """SamModel of the sizes of CONFIG, or of other encoders."""
    sizes = dict(
        hidden_size=WIDTH,
        output_channels=OUT,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=SIZE // GRID,
        mlp_dim=40,
        window_size=4,
        global_attn_indexes=(0, 3),
        num_pos_feats=OUT // 2,
    )
    return transformers.SamModel(
        transformers.SamConfig(
            vision_config=sizes | vision,
            prompt_encoder_config=dict(
                hidden_size=OUT, image_size=SIZE, patch_size=SIZE // GRID, mask_input_channels=8
            ),
            # The release has 1e-5 here.
            mask_decoder_config=dict(
                hidden_size=OUT,
                mlp_dim=20,
                num_attention_heads=4,
                iou_head_hidden_dim=12,
                layer_norm_eps=1e-5,
            ),
        )
    )


@pytest.fixture(scope="module")
def models() -> tuple:
    torch.manual_seed(0)
    theirs = hugging_face().eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.randn_like(value) * (0.5 if value.ndim == 1 else 0.3))
    state = theirs.state_dict()
    weights = {key: state[name].numpy() for name, key in released_names().items()}
    found = prefixed("encoder", golden_vision.sam_encoder(weights, "image_encoder", 4, [0, 3]))
    found |= prefixed("prompts", golden_vision.sam_prompts(weights, "prompt_encoder"))
    found |= prefixed("decoder", golden_vision.sam_decoder(weights, "mask_decoder", 2, 4))
    model = define(lambda rngs: SamUnit(CONFIG, 8, rngs))
    query = {k: s for k, s in model.shapes.items() if k.startswith("query.")}
    assert {k: v.shape for k, v in found.items()} | query == model.shapes
    params = {k: jnp.asarray(v) for k, v in found.items()}
    return theirs, model.merge(params, {k: jnp.zeros(s) for k, s in query.items()})


def close(found: jax.Array, want: "torch.Tensor", tolerance: float = 1e-4) -> None:
    want = want.detach().numpy()
    np.testing.assert_allclose(found, want, atol=tolerance * np.abs(want).max(), rtol=0)


def test_image_embedding(models: tuple) -> None:
    theirs, ours = models
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    want = theirs.get_image_embeddings(torch.tensor(pixels))
    found = ours.encode(jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    close(found, want.permute(0, 2, 3, 1))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("kind", ["points", "boxes", "points and boxes", "points and mask"])
def test_prompts_and_masks(models: tuple, kind: str, multimask: bool) -> None:
    theirs, ours = models
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(1, OUT, GRID, GRID)).astype(np.float32)
    points = rng.uniform(0, SIZE, (3, 2, 2)).astype(np.float32)
    clicks = np.array([[Click.ON, Click.AWAY], [Click.ON, Click.NONE], [Click.AWAY, Click.ON]])
    boxes = rng.uniform(0, SIZE, (3, 4)).astype(np.float32)
    mask = rng.normal(size=(1, 4 * GRID, 4 * GRID)).astype(np.float32)
    asked, tokens = {}, []
    if "points" in kind:
        asked |= {"input_points": points[None], "input_labels": clicks[None]}
        # Without a box, one empty click follows.
        fill = (0, 1) if "boxes" not in kind else (0, 0)
        padded = np.pad(points, ((0, 0), fill, (0, 0)))
        kinds = np.pad(clicks, ((0, 0), fill), constant_values=Click.NONE)
        tokens.append(ours.prompts.points(jnp.asarray(padded / SIZE), jnp.asarray(kinds)))
    if "boxes" in kind:
        asked |= {"input_boxes": boxes[None]}
        tokens.append(ours.prompts.boxes(jnp.asarray(boxes / SIZE)))
    if "mask" in kind:
        asked |= {"input_masks": mask[None]}
        dense = ours.prompts.masks(jnp.asarray(mask))
    else:
        dense = ours.prompts.without_mask()
    want = theirs(
        image_embeddings=torch.tensor(embedding),
        multimask_output=multimask,
        **{k: torch.tensor(v) for k, v in asked.items()},
    )
    picture = jnp.asarray(embedding.transpose(0, 2, 3, 1)) + dense
    masks, quality = ours.decoder(
        jnp.repeat(picture, 3, axis=0),
        ours.prompts.position.grid(GRID, GRID),
        jnp.concatenate(tokens, axis=1),
        multimask=multimask,
    )
    close(masks, want.pred_masks[0])
    close(quality, want.iou_scores[0])


@pytest.mark.parametrize("name", ["base", "large", "huge"])
def test_released_encoders_have_their_number_of_parameters(name: str) -> None:
    config = SamUnitConfig(encoder=SAM_ENCODERS[name])
    shapes = define(lambda rngs: SamUnit(config, 256, rngs)).shapes
    count = sum(int(np.prod(s)) for k, s in shapes.items() if not k.startswith("query."))
    c = config.encoder
    with torch.device("meta"):
        sizes = transformers.SamVisionConfig(
            hidden_size=c.width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            global_attn_indexes=c.global_layers,
        )
        theirs = transformers.SamModel(transformers.SamConfig(vision_config=sizes))
    assert count == sum(p.numel() for p in theirs.parameters())
    assert name != "huge" or count == 641_090_864
