"""Label maps: Cityscapes, Pascal VOC, Pascal Context and ADE20K's 150 classes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.records import Dialog, MediaRef
from data_pipelines.sources.base import Drops, RecordError, SourceError, clean_name, picture
from data_pipelines.sources.coco import objects
from data_pipelines.sources.dialogs import dialog_of, phrase_turn
from data_pipelines.sources.label_maps import pixel_region, read_labels

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train",
    "tv monitor",
)  # fmt: skip
CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}  # fmt: skip
"""The evaluated classes by label id; from 24 on they have instances."""
_FIRST_THING = 24
_NAME_LINE = re.compile(r"^\s*(\d+)\s*[:\t]\s*(.+?)\s*$")
_MAPS = (".png", ".tif", ".tiff")


def cityscapes(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T14 of the instances of every picture, and T16 of every evaluated class in it.

    Args:
      path: `gtFine`, the folder of train/, val/ and test/.
      split: train or val; test holds no labels.
      folder: folder of the pictures, `leftImg8bit`.
      drops: takes unusable records.
    """
    root = Path(path) / split
    files = sorted(root.glob("*/*_gtFine_instanceIds.png"))
    if not files:
        raise SourceError(f"{root}: no */*_gtFine_instanceIds.png; give the folder gtFine")
    for number, file in enumerate(files):
        found: list[Dialog] = []
        with drops.guard(str(file)):
            found = list(_cityscapes_dialogs(file, number, split, folder))
        yield from found


def _cityscapes_dialogs(file: Path, number: int, split: str, folder: str) -> Iterator[Dialog]:
    stem = file.name.removesuffix("_gtFine_instanceIds.png")
    ids = read_labels(file)
    height, width = ids.shape
    name = f"{split}/{file.parent.name}/{stem}_leftImg8bit.png"
    image = picture(name, folder, width, height)
    known: dict[str, Any] = {"image_id": number + 1, "native_id": f"{stem}_leftImg8bit"}
    # An instance is class * 1000 + number; a thing class alone marks a group of them.
    things = [
        pixel_region(ids == k, CITYSCAPES_CLASSES[c], is_crowd=k < 1000)
        for k in np.unique(ids).tolist()
        if (c := k // 1000 if k >= 1000 else k) in CITYSCAPES_CLASSES and c >= _FIRST_THING
    ]
    if any(not r.is_crowd for r in things):
        yield objects("T14", ("cityscapes", split, stem), image, things, known)
    kinds = np.where(ids >= 1000, ids // 1000, ids)
    yield from _classes(kinds, CITYSCAPES_CLASSES, image, ("cityscapes", split, stem), known)


def _classes(
    labels: np.ndarray,
    names: dict[int, str],
    image: MediaRef,
    uid: tuple[str, str, str],
    known: dict[str, Any],
) -> Iterator[Dialog]:
    """T16 of every named class in a label map."""
    source, split, stem = uid
    for k in np.unique(labels).tolist():
        if k in names:
            region = pixel_region(labels == k, names[k])
            turn = phrase_turn("T16", names[k], [0], slots={"expr": names[k]})
            at = (source, split, f"{stem}-{k}")
            yield dialog_of("T16", at, image, [turn], [region], **known)


def pascal_voc(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T16 of every class in every picture of ImageSets/Segmentation/{split}.txt.

    Args:
      path: `VOCdevkit/VOC2012` or another year; maps lie in SegmentationClass/.
      split: train, val or trainval.
      folder: folder of the pictures, `JPEGImages`.
      drops: takes unusable records.
    """
    listed = Path(path) / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listed.is_file():
        raise SourceError(f"{listed}: not found; see data_pipelines/sources/README.md")
    names = dict(enumerate(VOC_CLASSES, 1))  # 0 is background, 255 the border
    files = [
        Path(path) / "SegmentationClass" / f"{number}.png"
        for number in listed.read_text(encoding="utf-8").split()
    ]
    return _maps(files, names, ("pascal_voc", split), folder, ".jpg", drops)


def label_maps(
    path: Path,
    split: str,
    folder: str,
    drops: Drops,
    *,
    names: str,
    source: str,
    ignore: str = "",
    suffix: str = ".jpg",
) -> Iterator[Dialog]:
    """T16 of every class in every PNG or TIFF map of a folder.

    Args:
      path: folder of the maps.
      split: split of the records.
      folder: folder of the pictures, which have the maps' names.
      drops: takes unusable records.
      names: text file of classes, a line each: `id:name`, or ADE20K's `objectInfo150.txt`.
      source: name of the source, for instance pascal_context59 or ade20k_semantic.
      ignore: values that are no class although `names` has them, as "0 255".
      suffix: ending of the pictures' names.
    """
    files = sorted(f for f in Path(path).glob("*") if f.suffix.lower() in _MAPS)
    if not files:
        raise SourceError(f"{path}: no PNG or TIFF map in this folder; give the folder of the maps")
    skipped = {int(k) for k in ignore.split()}
    kept = {k: name for k, name in read_names(Path(names)).items() if k not in skipped}
    return _maps(files, kept, (source, split), folder, suffix, drops)


def read_names(path: Path) -> dict[int, str]:
    """Class names by number, of synonyms the first; SourceError when a line is something else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); name the class list"
        ) from None
    table = bool(lines) and lines[0].startswith("Idx")
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (table and number == 1):
            continue
        if (match := _NAME_LINE.match(line)) is None:
            raise SourceError(f"{path}:{number}: {line!r:.40} is not `id:name`; correct the line")
        name = match[2].split("\t")[-1] if table else match[2]
        found[int(match[1])] = clean_name(re.split("[,;]", name)[0])
    return found


def _maps(
    files: list[Path],
    names: dict[int, str],
    named: tuple[str, str],
    folder: str,
    suffix: str,
    drops: Drops,
) -> Iterator[Dialog]:
    for number, file in enumerate(files):
        found: list[Dialog] = []
        with drops.guard(str(file)):
            width, height = _size(file)
            image = picture(f"{file.stem}{suffix}", folder, width, height)
            known: dict[str, Any] = {"image_id": number + 1, "native_id": file.stem}
            labels = read_labels(file, image)
            found = list(_classes(labels, names, image, (*named, file.stem), known))
        yield from found


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as opened:
            return opened.size
    except Exception as error:  # Pillow's readers raise many unrelated types on damaged files
        kind = type(error).__name__
        raise RecordError("V06", f"{file} cannot be read ({kind}); fetch it again") from None
