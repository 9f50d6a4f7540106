"""Pages about built datasets: the build report, and records with their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from data_pipelines.build_report import CODES, rows_of
from data_pipelines.doctor import ROOMY
from data_pipelines.encode import EncodeOptions, encode_row
from data_pipelines.entries import hash64
from data_pipelines.images import load_image
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore, read_manifest
from data_pipelines.tasks import TASKS
from data_pipelines.tokenizer import Tokenizer
from refvlm_jax.batch import TEXT
from refvlm_jax.cli.truths import Question, drawn_prompts, truth_of, words_of
from refvlm_jax.eval.answer_html import answer_html, question_html
from refvlm_jax.eval.overlay import image_element, overlay_svg
from refvlm_jax.eval.overlay_units import depth_range
from refvlm_jax.eval.records import write_text
from refvlm_jax.trp.tokens import IGNORE_ID


@dataclass(frozen=True)
class Shown:
    """One turn of a card."""

    question: str
    answer: str
    drawing: str
    """SVG; empty for a turn without a picture."""


@dataclass(frozen=True)
class Card:
    """One record."""

    title: str
    uid: str
    facts: str
    turns: list[Shown]
    tokens: str = ""
    """Its row as HTML, or why it has none."""


def write_build_page(folder: Path, report: Mapping[str, Any]) -> Path:
    """Writes `build_report.html` beside the shards from the content of `build_report.json`."""
    store = DialogStore(folder)
    root = _root(folder)
    cards = [
        card_of(store[index], root) for records in report["samples"].values() for index in records
    ]
    dropped, flagged = report["dropped"], report["flagged"]
    codes = [
        (
            code,
            rule,
            dropped.get(code, 0),
            flagged.get(code, 0),
        )
        for code, rule in CODES.items()
    ]
    page = _page().render(
        title=f"Dataset {folder.resolve().name}",
        facts={
            "dialogues": sum(report["counts"].values()),
            "tasks": len(report["counts"]),
            "pictures": report["pictures"],
            "copies of pictures": report.get("copies", 0),
            "dropped": sum(report["dropped"].values()),
            "duplicates": report["flagged"].get("V23", 0),
        },
        report=report,
        rows=rows_of(report["sources"]),
        units=sorted({u for row in rows_of(report["sources"]) for u in row} & set(report["units"])),
        codes=codes,
        cards=cards,
    )
    write_text(folder / "build_report.html", page)
    return folder / "build_report.html"


def write_record_page(
    path: Path, title: str, dialogs: Sequence[Dialog], root: Path, tokenizer: Tokenizer
) -> None:
    """Writes a page of records with their regions and tokens."""
    cards = [replace(card_of(d, root), tokens=tokens_html(d, root, tokenizer)) for d in dialogs]
    page = _page().render(title=title, facts={"records": len(cards)}, report=None, cards=cards)
    write_text(path, page)


def card_of(dialog: Dialog, root: Path) -> Card:
    """A record with each of its turns drawn; a picture that is gone is said, not drawn."""
    task = TASKS[dialog.task_id].name if dialog.task_id in TASKS else ""
    image, problem = None, ""
    if dialog.image is not None:
        try:
            image = load_image(dialog.image, root)
        except ValueError as error:
            problem = str(error)
    size = f"{dialog.image.width} x {dialog.image.height}" if dialog.image else "no picture"
    facts = " · ".join(filter(None, [dialog.source, size, *dialog.flags, problem]))
    turns = [_turn(dialog, number, image, root) for number in range(len(dialog.turns))]
    return Card(title=f"{dialog.task_id} {task}", uid=dialog.uid, facts=facts, turns=turns)


def _turn(dialog: Dialog, number: int, image: np.ndarray | None, root: Path) -> Shown:
    question = Question(dialog, number)
    words = words_of(question.turn)
    if dialog.image is None:
        return Shown(question_html(words), escape(question.turn.answer), "")
    truth = truth_of(question, image_root=root)
    answer = answer_html(question.turn.answer, truth.triplets)
    if image is None:
        return Shown(question_html(words), answer, "")
    width, height = dialog.image.width, dialog.image.height
    name = f"p{hash64(dialog.uid):x}-{number}"
    drawing = overlay_svg(
        truth,
        image_element(image, name, width, height),
        width,
        height,
        label=f"{dialog.task_id}: {words}",
        prompts=drawn_prompts(question),
        depth_span=depth_range(truth),
    )
    return Shown(question_html(words), answer, drawing)


def tokens_html(dialog: Dialog, root: Path, tokenizer: Tokenizer) -> str:
    """The tokens of a record as training sees them, supervised ones marked.

    Questions use the first template of their bank.
    """
    try:
        row = encode_row([dialog], root, tokenizer, EncodeOptions(spec=ROOMY), None)
    except ValueError as error:
        return f'<p class="problem">{escape(str(error))}</p>'
    pieces, length = [], int((row["segment_ids"] > 0).sum())
    first_prompt = ROOMY.images * ROOMY.image_tokens
    place = 0
    while place < length:
        if (index := int(row["visual_index"][place])) != TEXT:
            picture = index < first_prompt
            count = ROOMY.image_tokens if picture else ROOMY.prompt_tokens
            pieces.append(f'<i class="visual">{"picture" if picture else "region"} x{count}</i>')
            place += count
            continue
        kind = "t" if row["labels"][place] == IGNORE_ID else "t loss"
        text = tokenizer.decode([int(row["tokens"][place])])
        pieces.append(f'<span class="{kind}">{escape(text).replace(chr(10), "⏎<br>")}</span>')
        place += 1
    supervised = int((row["labels"][:length] != IGNORE_ID).sum())
    head = f"{length} positions, {supervised} supervised, {int(row['ref_valid'].sum())} references"
    return f'<p class="muted">{head}</p><div class="tokens">{"".join(pieces)}</div>'


def _root(folder: Path) -> Path:
    return Path(read_manifest(folder)["image_root"])


def _page() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("refvlm_jax.cli", "."),
        autoescape=jinja2.select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("data.html.j2")
