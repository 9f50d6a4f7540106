"""The inference engine: prompt batches in, answers with everything decoded in picture pixels out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import jax
import numpy as np

from refvlm_jax.batch import Batch
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.infer.answers import Reference, TextAnswer, Tokenizer, read_answer, reference_table
from refvlm_jax.infer.generate import Generation, decode_answers, generate
from refvlm_jax.models.refvlm import RefTable, RefVLM, UnitOutputs
from refvlm_jax.models.units.dispatch import SlotMap
from refvlm_jax.trp.tokens import Unit

ModelOf = Callable[[Mapping[str, jax.Array]], RefVLM]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the engine must know about a row besides its tensors."""

    width: int
    height: int
    """Size of the original picture in pixels."""
    unit: Unit
    """Unit the task command asks for."""


@dataclass(kw_only=True)
class DecodedReference:
    """One decoded reference, in pixels of the original picture."""

    group: int
    phrase: str | None
    unit: Unit
    score: float
    score_parts: dict[str, float]
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2, not clipped."""
    mask: np.ndarray | None = None
    """bool[H, W]."""
    keypoints: np.ndarray | None = None
    """float[K, 3] x, y and the probability of being visible."""
    depth: np.ndarray | None = None
    """float32[H, W] metres, or inverse depth up to scale and shift where `depth_kind` is relative."""
    depth_kind: str = "metric"


@dataclass(kw_only=True)
class Answer:
    """A complete answer: text, its structure, and every decoded reference."""

    text: TextAnswer
    references: list[DecodedReference] = field(default_factory=list)
    overflow: int = 0
    """References the decoders had no slot for."""


class Engine:
    """Answers batches of prompts with two compiled programs: generate, and decode units.

    Args:
      model_of: rebuilds the model from its flat parameters inside a traced function.
      params: flat parameters by dotted name.
      tokenizer: see `Tokenizer`.
      max_new: room for generated tokens.
      slots: reference slots of the unit decoding program.
      mask_threshold: probability above which a mask pixel is set.
      depth_kind: what the model's depth decoder answers, see `DepthUnitConfig.mode`.
      scope: entered while the programs are traced, to lay activations out on a mesh.
    """

    def __init__(
        self,
        model_of: ModelOf,
        params: Mapping[str, jax.Array],
        tokenizer: Tokenizer,
        *,
        max_new: int,
        slots: int,
        mask_threshold: float = 0.5,
        depth_kind: str = "metric",
        scope: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.params, self.tokenizer, self.slots = params, tokenizer, slots
        self.depth_kind = depth_kind
        self.mask_logit = float(np.log(mask_threshold / (1.0 - mask_threshold)))

        def answer(params: Mapping[str, jax.Array], batch: Batch) -> Generation:
            eos, pad = tokenizer.eos_id, tokenizer.pad_id
            with scope():
                return generate(model_of(params), batch, max_new=max_new, eos_id=eos, pad_id=pad)

        def decode(
            params: Mapping[str, jax.Array], generation: Generation, refs: RefTable, images: int
        ) -> UnitOutputs:
            with scope():
                return decode_answers(model_of(params), generation, refs, images)

        self._generate = jax.jit(answer)
        self._decode = jax.jit(decode, static_argnums=3)

    def answer(self, batch: Batch, requests: Sequence[Request]) -> list[Answer]:
        """Answers the first `len(requests)` rows of a prompt batch (the rest fill it up)."""
        generation = self._generate(self.params, batch)
        host = jax.device_get((generation.tokens, generation.log_prob, generation.finished))
        texts = [
            read_answer(ids.tolist(), log_prob, bool(done), self.tokenizer, unit)
            for ids, log_prob, done, unit in zip(*host, _units(requests, len(host[0])), strict=True)
        ]
        table = reference_table(texts, self.slots)
        units = self._decode(self.params, generation, table, batch.image_valid.shape[1])
        outputs = jax.device_get(units)
        return [
            self._assemble(texts[row], requests[row], outputs, row) for row in range(len(requests))
        ]

    def _assemble(
        self, text: TextAnswer, request: Request, outputs: UnitOutputs, row: int
    ) -> Answer:
        square = PaddedSquare(request.width, request.height)
        found = []
        for slot, reference in enumerate(text.references[: self.slots]):
            decoded = self._decoded(reference, square, outputs, row, slot)
            if decoded is not None:
                found.append(decoded)
        return Answer(text=text, references=found, overflow=len(text.references) - len(found))

    def _decoded(
        self,
        reference: Reference,
        square: PaddedSquare,
        outputs: UnitOutputs,
        row: int,
        slot: int,
    ) -> DecodedReference | None:
        result = DecodedReference(
            group=reference.group,
            phrase=reference.phrase,
            unit=reference.unit,
            score=0.0,
            score_parts=dict(reference.score_parts),
        )
        read = {
            Unit.BOX: _read_box, Unit.MASK: self._read_mask, Unit.KEYPOINT: _read_figure,
            Unit.DEPTH: self._read_depth,
        }.get(reference.unit)  # fmt: skip
        if read is None or not read(result, square, outputs, row, slot):
            return None
        result.score = confidence(result.score_parts)
        return result

    def _read_mask(
        self,
        result: DecodedReference,
        square: PaddedSquare,
        outputs: UnitOutputs,
        row: int,
        slot: int,
    ) -> bool:
        logits = _own_map(outputs.mask_logits, outputs.mask_slots, row, slot)
        if logits is None:
            return False
        result.mask = square.mask_to_pixels(logits, self.mask_logit)
        result.score_parts["decoder"] = mask_confidence(logits, self.mask_logit)
        return True

    def _read_depth(
        self,
        result: DecodedReference,
        square: PaddedSquare,
        outputs: UnitOutputs,
        row: int,
        slot: int,
    ) -> bool:
        depth = _own_map(outputs.depth, outputs.depth_slots, row, slot)
        if depth is None or not np.isfinite(depth).all():
            return False
        result.depth, result.depth_kind = square.map_to_pixels(depth), self.depth_kind
        result.score_parts["decoder"] = 1.0
        return True


def _own_map(
    maps: jax.Array | None, table: SlotMap | None, row: int, slot: int
) -> np.ndarray | None:
    """The map [y, x] that a reference owns among [B, I, Q, y, x]; None if it has no query slot."""
    if maps is None or table is None or (query := int(table.slot[row, slot])) < 0:
        return None
    return np.asarray(maps[row, 0, query])


def _read_box(
    result: DecodedReference, square: PaddedSquare, outputs: UnitOutputs, row: int, slot: int
) -> bool:
    if outputs.boxes is None:
        return False
    found = np.asarray(outputs.boxes[row, slot])
    box = square.boxes_to_pixels(found)
    # Zeros, which no sigmoid gives, mark a reference without a query slot.
    if not found.any() or not np.isfinite(box).all():
        return False
    result.box = tuple(float(v) for v in box)  # type: ignore[assignment]
    result.score_parts["decoder"] = 1.0
    return True


def _read_figure(
    result: DecodedReference, square: PaddedSquare, outputs: UnitOutputs, row: int, slot: int
) -> bool:
    if outputs.keypoints is None:
        return False
    points, logits, box = (
        np.asarray(values[row, slot], np.float64)
        for values in (
            outputs.keypoints.points,
            outputs.keypoints.visibility,
            outputs.keypoints.boxes,
        )
    )
    # Zeros, which no sigmoid gives, mark a reference without a query slot.
    if not box.any() or not all(np.isfinite(values).all() for values in (points, logits, box)):
        return False
    visible = 1.0 / (1.0 + np.exp(logits[:, :1] - logits[:, 1:]))
    result.keypoints = np.concatenate([square.points_to_pixels(points), visible], axis=1)
    result.box = tuple(float(v) for v in square.boxes_to_pixels(box))  # type: ignore[assignment]
    result.score_parts["decoder"] = float(visible.mean())
    return True


def _units(requests: Sequence[Request], rows: int) -> list[Unit]:
    return [r.unit for r in requests] + [Unit.NONE] * (rows - len(requests))


def mask_confidence(logits: np.ndarray, threshold: float) -> float:
    """Mean probability inside the predicted mask; 0 for an empty one."""
    inside = logits[logits > threshold]
    return float((1.0 / (1.0 + np.exp(-inside))).mean()) if inside.size else 0.0


def confidence(parts: Mapping[str, float]) -> float:
    """Ranking score of a reference: (phrase x ref)^1/2 x decoder, see `docs/decisions.md`."""
    return (parts["phrase"] * parts["ref"]) ** 0.5 * parts["decoder"]
