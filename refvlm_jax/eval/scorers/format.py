"""Format compliance: does the text keep the grammar, and does its plan say what its body does?"""

from collections import Counter
from collections.abc import Sequence

from refvlm_jax.eval.record_types import Prediction, Truth
from refvlm_jax.eval.scorers.pairing import Metrics, Pair, Predictions, counts, mean, pair, ratio
from refvlm_jax.eval.text.phrase import normalise
from refvlm_jax.trp.format import FormatReport, check_format
from refvlm_jax.trp.parse import parse_answer


def score(truths: Sequence[Truth], predictions: Predictions) -> Metrics:
    """Rates over all samples, and phrases and counts against the truth.

    format_valid (every rule kept), parse_ok, self_consistent (plan = body), cot_flag_ok,
    ref_index_ok, truncated_rate, n, n_missing, n_parse_fail; where phrases are asked for also
    phrase_precision, phrase_recall (sets of phrases, micro), count_exact and count_mae (references
    a phrase).
    """
    pairs = pair(truths, predictions)
    reports = [check_format(p.raw if p else "", truth.style) for truth, p in pairs]
    return {
        "format_valid": mean(_given(pairs, reports, "valid")),
        "parse_ok": mean(_given(pairs, reports, "parse_ok")),
        "self_consistent": mean(_given(pairs, reports, "self_consistent")),
        "cot_flag_ok": mean(_given(pairs, reports, "cot_flag_ok")),
        "ref_index_ok": mean(_given(pairs, reports, "ref_index_ok")),
        "truncated_rate": mean(p is not None and p.finish == "length" for _, p in pairs),
        **_phrase_metrics(pairs),
        **counts(pairs),
        "n_parse_fail": sum(not ok for ok in _given(pairs, reports, "parse_ok")),
    }


def _given(pairs: Sequence[Pair], reports: Sequence[FormatReport], rule: str) -> list[bool]:
    """Which samples keep a rule; an empty or missing answer keeps none."""
    return [
        prediction is not None and bool(prediction.raw.strip()) and getattr(report, rule)
        for (_, prediction), report in zip(pairs, reports, strict=True)
    ]


def _phrase_metrics(pairs: Sequence[Pair]) -> Metrics:
    wanted = [_truth_counts(truth) for truth, _ in pairs]
    found = [_found_counts(prediction) for _, prediction in pairs]
    named = sum(len(counter) for counter in wanted)
    if not named:
        return {}
    both = list(zip(wanted, found, strict=True))
    shared = sum(len(w.keys() & f.keys()) for w, f in both)
    exact = sum(w[phrase] == f[phrase] for w, f in both for phrase in w)
    errors = [abs(w[phrase] - f[phrase]) for w, f in both for phrase in w.keys() | f.keys()]
    return {
        "phrase_precision": ratio(shared, sum(len(counter) for counter in found)),
        "phrase_recall": shared / named,
        "count_exact": exact / named,
        "count_mae": mean(errors),
    }


def _truth_counts(truth: Truth) -> Counter[str]:
    counter: Counter[str] = Counter()
    for triplet in truth.triplets:
        counter[normalise(triplet.phrase)] += len(triplet.instances)
    return counter


def _found_counts(prediction: Prediction | None) -> Counter[str]:
    counter: Counter[str] = Counter()
    for group in parse_answer(prediction.raw).groups if prediction else ():
        counter[normalise(group.phrase or "")] += group.ref_count
    return counter
