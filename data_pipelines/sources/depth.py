"""Depth maps beside pictures: 16-bit PNG files named like the pictures."""

from collections.abc import Iterator
from pathlib import Path

from data_pipelines.records import Depth, Dialog, Region, Span, Turn
from data_pipelines.sources.base import Drops, need, read_json
from data_pipelines.sources.coco import media, where_of
from data_pipelines.tasks import TASKS

_TARGET = "target"
_ANSWER = f"The depth of the {_TARGET}."


def depth_maps(
    path: Path,
    split: str,
    folder: str,
    drops: Drops,
    *,
    depth_folder: str,
    scale: float,
    offset: float = 0.0,
    kind: str = "metric",
    invalid: int = 0,
) -> Iterator[Dialog]:
    """T25 of every picture in the `images` of a COCO file.

    Args:
      depth_folder: where the maps are, under the image root; `a.jpg` has its map in `a.png`.
      scale: value of one step of a sample: 0.001 for millimetres, 1 / 256 for KITTI.
      offset: value of sample 0.
      kind: metric (metres) or relative (inverse depth up to scale and shift).
      invalid: sample of unknown pixels.
    """
    spec = TASKS["T25"]
    for place, row in enumerate(read_json(path, keys=("images",))["images"]):
        found: list[Dialog] = []
        with drops.guard(where_of(path, "image", row, place)):
            (number,) = need(row, "id")
            image = media(row, folder)
            file = f"{depth_folder}/{Path(row['file_name']).stem}.png"
            depth = Depth(path=file, scale=scale, offset=offset, kind=kind, invalid=invalid)
            start = _ANSWER.index(_TARGET)
            span = Span(start=start, end=start + len(_TARGET), unit=spec.unit, targets=[0])
            turn = Turn(task_name=spec.command, bank=spec.bank, answer=_ANSWER, spans=[span])
            dialog = Dialog(
                uid=f"depth/{split}/{number}",
                source="depth",
                split=split,
                task_id="T25",
                image=image,
                regions=[Region(depth=depth)],
                turns=[turn],
                provenance={"image_id": number},
            )
            found = [dialog]
        yield from found
