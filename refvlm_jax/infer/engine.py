"""The inference engine: prompt batches in, answers with boxes and masks in picture pixels out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from refvlm_jax.batch import Batch
from refvlm_jax.geometry import PaddedSquare
from refvlm_jax.infer.answers import Reference, TextAnswer, Tokenizer, read_answer, reference_table
from refvlm_jax.infer.generate import Generation, generate
from refvlm_jax.models.refvlm import RefTable, RefVLM, UnitOutputs
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
    ):
        self.params, self.tokenizer, self.slots = params, tokenizer, slots
        self.mask_logit = float(np.log(mask_threshold / (1.0 - mask_threshold)))

        def answer(params: Mapping[str, jax.Array], batch: Batch) -> Generation:
            eos, pad = tokenizer.eos_id, tokenizer.pad_id
            return generate(model_of(params), batch, max_new=max_new, eos_id=eos, pad_id=pad)

        def decode(
            params: Mapping[str, jax.Array], generation: Generation, refs: RefTable, images: int
        ) -> UnitOutputs:
            model = model_of(params)
            return model.decode_units(generation.hidden, refs, generation.features, images)

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
        if reference.unit is Unit.BOX and outputs.boxes is not None:
            box = square.boxes_to_pixels(np.asarray(outputs.boxes[row, slot]))
            if not np.isfinite(box).all():
                return None
            result.box = tuple(float(v) for v in box)  # type: ignore[assignment]
            result.score_parts["decoder"] = 1.0
        elif reference.unit is Unit.MASK and outputs.mask_logits is not None:
            assert outputs.mask_slots is not None
            query = int(outputs.mask_slots.slot[row, slot])
            if query < 0:
                return None
            logits = np.asarray(outputs.mask_logits[row, 0, query])
            result.mask = square.mask_to_pixels(logits, self.mask_logit)
            result.score_parts["decoder"] = mask_confidence(logits, self.mask_logit)
        else:
            return None
        result.score = confidence(result.score_parts)
        return result


def _units(requests: Sequence[Request], rows: int) -> list[Unit]:
    return [r.unit for r in requests] + [Unit.NONE] * (rows - len(requests))


def mask_confidence(logits: np.ndarray, threshold: float) -> float:
    """Mean probability inside the predicted mask; 0 for an empty one."""
    inside = logits[logits > threshold]
    return float((1.0 / (1.0 + np.exp(-inside))).mean()) if inside.size else 0.0


def confidence(parts: Mapping[str, float]) -> float:
    """Ranking score of a reference: (phrase x ref)^1/2 x decoder, see `docs/decisions.md`."""
    return (parts["phrase"] * parts["ref"]) ** 0.5 * parts["decoder"]
