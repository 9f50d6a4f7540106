"""Tiny pictures, dialogues, data sets and a tokenizer, shared by the data tests."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import records, shards
from data_pipelines.records import Dialog, Mask, MediaRef, Prompt, PromptKind, Region, Span, Turn
from data_pipelines.tokenizer import Tokenizer, train_tokenizer
from refvlm_jax import rle
from refvlm_jax.batch import BatchSpec
from refvlm_jax.trp.tokens import Unit

WIDTH, HEIGHT = 40, 30
SPEC = BatchSpec(
    seq_len=256,
    images=1,
    image_size=32,
    image_tokens=4,
    prompts=3,
    prompt_tokens=2,
    refs=8,
    mask_refs=4,
    mask_size=16,
)
WORDS = ["red", "green", "cup", "dog", "left", "of", "the", "a", "two"]


def tokenizer(out: Path) -> Tokenizer:
    """A tokenizer of a few hundred tokens."""
    texts = [f"{word} {word}" for word in WORDS] * 3 + ["Where is the red cup? A dog and a cup."]
    return train_tokenizer(texts, out, 600)


def media(name: str = "a.png") -> MediaRef:
    """The record of a picture written by `write_picture`."""
    return MediaRef(path=name, width=WIDTH, height=HEIGHT)


def write_picture(root: Path, name: str = "a.png") -> None:
    """A picture whose colour depends on its name."""
    value = sum(name.encode()) % 200
    Image.new("RGB", (WIDTH, HEIGHT), (value, 10, 240)).save(root / name)


def region(x: int = 4, y: int = 6, side: int = 10) -> Region:
    """A square with box, mask and point."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return Region(
        category="cup",
        box=(x, y, x + side, y + side),
        point=(x + side / 2, y + side / 2),
        mask=Mask(h=HEIGHT, w=WIDTH, counts=rle.encode(mask)),
    )


def dialog(turns: list[Turn], uid: str = "toy/train/0/0", **fields: object) -> Dialog:
    """A dialogue about `a.png` with eight regions."""
    settings: dict = {
        "uid": uid,
        "source": "toy",
        "split": "train",
        "task_id": "T17",
        "image": media(),
        "regions": [region(x=2 + 3 * k) for k in range(8)],
        **fields,
    }
    return Dialog(turns=turns, **settings)


def grounding(
    phrases: list[tuple[str, list[int]]],
    unit: Unit = Unit.BOX,
    *,
    question: str = "Where is the cup?",
    prompts: list[int] | None = None,
) -> Turn:
    """A turn whose answer lists phrases with their target regions."""
    answer, spans = "", []
    for phrase, targets in phrases:
        answer += ", " if answer else ""
        spans.append(
            Span(start=len(answer), end=len(answer) + len(phrase), unit=unit, targets=targets)
        )
        answer += phrase
    name = "grounding_segmentation" if unit is Unit.MASK else "grounding_detection"
    shown = [Prompt(region=k, kind=PromptKind.BOX) for k in prompts or []]
    literal = question + " [VPT]" * len(shown)
    return Turn(task_name=name, literal=literal, prompts=shown, answer=f"{answer}.", spans=spans)


def text_turn(answer: str, question: str = "Where is the red cup?") -> Turn:
    """A turn answered in words."""
    return Turn(task_name="vqa", literal=question, answer=answer)


def random_dialog(rng: random.Random) -> Dialog:
    """One to four turns with words, boxes, masks and prompts in any number."""
    turns = []
    for _ in range(rng.randint(1, 4)):
        prompts = rng.sample(range(8), rng.randint(0, 2))
        phrases = [
            (
                " ".join(rng.choices(WORDS, k=rng.randint(1, 4))),
                rng.sample(range(8), rng.randint(1, 4)),
            )
            for _ in range(rng.randint(0, 4))
        ]
        unit = rng.choice([Unit.BOX, Unit.MASK])
        turns.append(
            grounding(phrases, unit, prompts=prompts)
            if phrases
            else text_turn(" ".join(rng.choices(WORDS, k=rng.randint(0, 60))))
        )
    return dialog(turns)


def write_dataset(root: Path, pictures: int = 6, tasks: tuple[str, ...] = ("T13", "T17")) -> Path:
    """A dataset with one dialogue a picture and task; returns its folder."""
    (root / "images").mkdir(parents=True)
    stores = {}
    for task in tasks:
        with shards.ShardWriter(root / "data", task.lower(), records_per_shard=4) as writer:
            for k in range(pictures):
                made = dialog(
                    [grounding([("red cup", [k % 8])])],
                    uid=f"toy/train/{k}/{task}",
                    task_id=task,
                    image=media(f"{k}.png"),
                )
                writer.write(records.encode(made))
        stores[task.lower()] = writer.shards
    for k in range(pictures):
        write_picture(root / "images", f"{k}.png")
    counts = {"dialogs": pictures * len(tasks)}
    shards.write_manifest(
        root / "data", stores=stores, image_root=str(root / "images"), counts=counts, extra={}
    )
    return root / "data"
