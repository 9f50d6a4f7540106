"""The report: self-contained, complete, escaped, and drawn right."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from eval_world import SIDE, Scene, by_uid, shifted, world
from PIL import Image

from refvlm_jax.eval.answer_html import answer_html, question_html
from refvlm_jax.eval.curves import loss_curves
from refvlm_jax.eval.judge import judge
from refvlm_jax.eval.outline import outline_path
from refvlm_jax.eval.overlay import RegionPrompt, hue, image_uri
from refvlm_jax.eval.records import Triplet
from refvlm_jax.eval.report import write_report
from refvlm_jax.eval.score import score

TRUTHS = world(4)
VOID = {"meta", "link", "br", "hr", "img", "input"}
HISTORY = [
    {"step": k, "loss": 3.0 / (k + 1), "loss/llm": 2.0 / (k + 1), "loss/box_l1": 0.5, "lr": 1e-3}
    for k in range(40)
]


class Page(HTMLParser):
    """Collects tags with attributes and checks that elements are well nested."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def of_class(self, name):
        return [a for _, a in self.tags if name in (a.get("class") or "").split()]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    predictions = by_uid(shifted(truth, 5 * (k % 3)) for k, truth in enumerate(TRUTHS[1:]))
    table = score(
        TRUTHS, predictions, baselines={"trivial": {"T17": {"acc50": 0.123}}}, resamples=20
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    samples = [(t, predictions.get(t.uid), Scene(t.image_id).picture) for t in TRUTHS]
    write_report(
        path,
        title="A <run> & more",
        run_info={"Steps": 1500, "Config": "shapes"},
        metrics_history=HISTORY,
        scores={"val": table, "val_combos": table},
        samples=samples,
        prompts={t.uid: [RegionPrompt(point=(20.0, 40.0))] for t in TRUTHS if t.task_id == "T21"},
    )
    return path.read_text(encoding="utf-8")


def test_page_is_self_contained(content):
    assert not re.search(r"https?:|@import", content)
    for tag, attributes in Page(content).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/")), (tag, address)
    for url in re.findall(r"url\(([^)]*)\)", content):
        assert url.startswith("#")


def test_page_has_everything(content):
    page = Page(content)
    cards = page.of_class("card")
    assert len(cards) == len(TRUTHS) >= 24
    assert len(page.of_class("picture")) == 2 * len(cards)
    assert {c["data-verdict"] for c in cards} == {"correct", "wrong"}
    assert {c["data-task"] for c in cards} == {t.task_id for t in TRUTHS}
    assert {c["id"] for c in cards} == {t.uid for t in TRUTHS}
    assert len(page.of_class("chart")) == 3
    assert len(page.of_class("prompt")) == 2 * 4
    assert "no answer" in content and "0.123" in content and "95% interval" in content
    assert "A &lt;run&gt; &amp; more" in content and "<run>" not in content
    values = {a.get("data-value") for tag, a in page.tags if tag == "button"}
    assert {"", "correct", "wrong", "T17"} <= values
    assert "prefers-color-scheme: dark" in content and "@media print" in content


def test_ids_are_unique_and_local_references_resolve(content):
    page = Page(content)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for tag, a in page.tags if tag == "use"}
    used |= {url[1:] for url in re.findall(r"url\((#[^)]*)\)", content)}
    assert used <= set(ids)


def test_plain_scores_and_no_samples(tmp_path):
    path = tmp_path / "report.html"
    scores = {"T17": {"acc50": 0.5, "n": 2}, "all": {"format_valid": 1.0}}
    write_report(path, title="t", run_info={}, metrics_history=[], scores=scores, samples=[])
    page = path.read_text(encoding="utf-8")
    Page(page)
    assert "0.500" in page and not Page(page).of_class("chart")
    with pytest.raises(ValueError, match="expected uint8"):
        sample = (TRUTHS[0], None, np.zeros((4, 4), np.uint8))
        write_report(path, title="", run_info={}, metrics_history=[], scores={}, samples=[sample])
    assert path.read_text(encoding="utf-8") == page


def test_hostile_text_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    truth = replace(TRUTHS[0], uid=f'"{evil}', question=evil, answer=evil, references=[evil])
    prediction = replace(shifted(truth, 0), uid=truth.uid, raw=evil, plain=evil)
    path = tmp_path / "report.html"
    sample = (truth, prediction, Scene(0).picture)
    write_report(
        path, title=evil, run_info={evil: evil}, metrics_history=[], scores={}, samples=[sample]
    )
    page = path.read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "alert(1)</script>" not in page
    Page(page)


def test_answer_chips():
    triplets = next(t for t in TRUTHS if t.task_id == "T19").triplets
    plain = next(t for t in TRUTHS if t.task_id == "T19").answer
    html = answer_html(plain, triplets)
    Page(html)
    assert re.sub(r"<sup.*?</sup>|<[^>]*>", "", html) == plain
    assert [int(n) for n in re.findall(r'data-ref="(\d+)"', html)] == [1, 2]
    assert f"--h:{hue(triplets[0].phrase)}" in html
    span = dict(phrase="a", unit="box")
    crossing = [Triplet(**span, char_span=(0, 3)), Triplet(**span, char_span=(2, 5))]
    assert answer_html("a < b & c", crossing).count("chip") == 1
    nested = [Triplet(**span, char_span=(2, 3)), Triplet(**span, char_span=(0, 5))]
    Page(answer_html("a < b & c", nested))
    assert answer_html("x", [Triplet(**span, char_span=(0, 9))]) == "x"
    assert question_html("a < [VPT]?") == 'a &lt; <span class="region">region 1</span>?'


def test_verdicts():
    for truth in TRUTHS[:11]:
        assert judge(truth, shifted(truth, 0)).correct, truth.task_id
        assert not judge(truth, None).correct
        if truth.triplets:
            assert not judge(truth, shifted(truth, 30)).correct
    several = next(t for t in TRUTHS if t.task_id == "T13")
    fewer = replace(shifted(several, 0), triplets=several.triplets[:-1])
    assert not judge(several, fewer).correct and "2 of 3" in judge(several, fewer).badge
    more = replace(shifted(several, 0), triplets=several.triplets * 2)
    assert not judge(several, more).correct and "3 wrong" in judge(several, more).badge


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_outline_restores_the_mask(density):
    rng = np.random.default_rng(3)
    for h, w in ((1, 1), (1, 7), (9, 13), (20, 20)):
        mask = rng.random((h, w)) < density
        assert (fill(outline_path(mask), h, w) == mask).all()


def fill(path: str, h: int, w: int) -> np.ndarray:
    """Even-odd filling by counting the vertical edges to the left of every pixel centre."""
    crossings = np.zeros((h, w), int)
    for loop in re.findall(r"M(.*?)Z", path):
        points = [tuple(map(int, p.split())) for p in loop.split("L")]
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0:] += 1
    return crossings % 2 == 1


def test_small_pictures_are_enlarged_and_large_ones_reduced():
    def size(image):
        data = image_uri(image).partition(",")[2]
        return Image.open(io.BytesIO(base64.b64decode(data))).size

    assert size(np.zeros((SIDE, SIDE // 2, 3), np.uint8)) == (128, 256)
    assert size(np.zeros((300, 1200, 3), np.uint8)) == (640, 160)
    assert size(np.zeros((300, 400, 3), np.uint8)) == (400, 300)


def test_curves_leave_out_what_is_missing_or_not_finite():
    assert loss_curves([]) == []
    drawn = loss_curves([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.0}])
    assert len(drawn) == 1 and "<svg" in drawn[0]
    assert loss_curves(HISTORY) == loss_curves(HISTORY)
