"""Answers of somebody who knows the truth: what every scorer must find perfect."""

from collections.abc import Sequence

from refvlm_jax.eval.record_types import Instance, Prediction, Truth, instances
from refvlm_jax.eval.record_types import Triplet as Found
from refvlm_jax.trp.parse import parse_answer
from refvlm_jax.trp.spans import TextSpan, closing_order
from refvlm_jax.trp.tokens import Unit


def oracle(truth: Truth, objects: Sequence[Instance] | None = None) -> Prediction:
    """The prediction of a model that writes `truth.raw` and decodes every `<REF>` exactly.

    Nothing but the text tells phrases, units and numbers: it is parsed as a model's would be, and
    the objects are handed out to its references in order.

    Args:
      truth: the truth.
      objects: one for each reference, in order of the text; by default the true ones.

    Raises:
      ValueError: the text has another number of references than there are objects.
    """
    parsed = parse_answer(truth.raw)
    wanted = list(objects) if objects is not None else targets(truth)
    if parsed.ref_count != len(wanted):
        raise ValueError(
            f"truth {truth.uid!r}: {parsed.ref_count} references for {len(wanted)} objects; "
            "render the answer again"
        )
    return Prediction(
        uid=truth.uid,
        task_id=truth.task_id,
        image=truth.image,
        width=truth.width,
        height=truth.height,
        raw=truth.raw,
        plain=parsed.plain,
        finish="eos",
        n_tokens=0,
        plan=[{"name": p.name, "unit": p.unit_text, "num": p.num} for p in parsed.plan or []],
        triplets=[
            Found(
                phrase=group.phrase or "",
                unit=group.unit_text,
                char_span=(group.start, group.end),
                instances=wanted[group.first_ref : group.first_ref + group.ref_count],
            )
            for group in parsed.groups
        ],
    )


def targets(truth: Truth) -> list[Instance]:
    """The true objects in order of the references: nested phrases close before their outer ones."""
    spans = [TextSpan(*t.char_span, Unit.BOX, len(t.instances)) for t in truth.triplets]
    if not spans:
        return instances(truth)
    return [found for k in closing_order(spans) for found in truth.triplets[k].instances]
