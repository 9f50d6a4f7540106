"""Class lists of link-context learning: ImageNet's 900 and 100 classes, and ISEKAI."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog
from data_pipelines.sources.base import Drops, RecordError, clean_name, need, read_lines
from data_pipelines.sources.dialogs import dialog_of, turn_of, words
from data_pipelines.sources.sizes import Sizes, sized_picture

_ASK = "What is in the picture?"
_LISTS = ("samples", "context_samples", "test_samples")


def imagenet(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """A question about every listed picture of every class, for episodes to be put together from.

    Args:
      path: `train900_pairs.jsonl` (samples, neighbors) or `test100_pairs.jsonl` (context_samples,
        test_samples).
      split: split of the records.
      folder: folder of ImageNet's train/ and val/.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    for number, row in read_lines(path, drops):
        listed: list[tuple[str, int, str]] = []
        with drops.guard(f"{path}:{number}"):
            need(row, "class_id", "class_name")
            lists = [key for key in _LISTS if key in row]
            if not lists:
                raise RecordError("V01", f"none of {_LISTS} in the row; is it another version?")
            listed = [(key, k, name) for key in lists for k, name in enumerate(row[key])]
        for role, k, name in listed:
            found: list[Dialog] = []
            with drops.guard(f"{path}:{number}, {role} {k}"):
                found = [_sample(row, role, k, name, split, folder, sizes)]
            yield from found


def _sample(
    row: dict[str, Any], role: str, k: int, name: str, split: str, folder: str, sizes: Sizes
) -> Dialog:
    label = clean_name(words(row["class_name"], "class name"))
    image = sized_picture(name, folder, sizes)
    turn = turn_of("LCL", f"There is {label}.", question=_ASK, references=[label])
    uid = ("imagenet_classes", split, f"{row['class_id']}-{role}-{k}")
    # Nearest classes first, as [id, name, picture].
    known: dict[str, Any] = {"class_id": str(row["class_id"]), "class_name": label, "role": role}
    near = [list(map(str, item)) for item in row.get("neighbors") or []] if k == 0 else []
    return dialog_of("LCL", uid, image, [turn], **known, neighbors=near)


def isekai(path: Path, split: str, folder: str, drops: Drops, sizes: Sizes) -> Iterator[Dialog]:
    """A question about the picture of every row, with its supports; for evaluation only.

    Args:
      path: JSON lines {image_name, positive_list, negative_list, positive_promt, negative_promt,
        label_name}, so spelt.
      split: split of the records.
      folder: folder of the pictures.
      drops: takes unusable records.
      sizes: sizes of the pictures.
    """
    for number, row in read_lines(path, drops):
        found: list[Dialog] = []
        with drops.guard(f"{path}:{number}"):
            found = [_isekai_dialog(row, number, split, folder, sizes)]
        yield from found


def _isekai_dialog(
    row: dict[str, Any], number: int, split: str, folder: str, sizes: Sizes
) -> Dialog:
    name, label, yes, no, positive, negative = need(
        row, "image_name", "label_name", "positive_promt", "negative_promt", "positive_list",
        "negative_list",
    )  # fmt: skip
    label = words(label, "label_name")
    if label not in (yes, no):
        raise RecordError("V01", f"label {label!r} is neither {yes!r} nor {no!r}; correct the row")
    turn = turn_of("LCL", f"There is {label}.", question=_ASK, references=[label])
    known: dict[str, Any] = {
        "class_name": label, "positive_name": yes, "negative_name": no,
        "positive": list(map(str, positive)), "negative": list(map(str, negative)),
    }  # fmt: skip
    uid = ("isekai", split, f"{Path(name).parent.name or 'row'}-{number}")
    image = sized_picture(name, folder, sizes)
    return dialog_of("LCL", uid, image, [turn], (), ["eval_only"], **known)
