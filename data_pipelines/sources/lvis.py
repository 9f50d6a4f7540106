"""LVIS and COCO-ReM: other annotations of COCO's pictures, in COCO's layout but for the names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.records import Dialog
from data_pipelines.sources.base import Drops, RecordError, need
from data_pipelines.sources.coco import instances

_VERDICTS = ("neg_category_ids", "not_exhaustive_category_ids")


def lvis(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T13 and T14 of LVIS v1 (or v0.5); `folder` holds train2017/ and val2017/.

    LVIS is federated: a class that is not annotated need not be absent. Which ones are known to be
    absent, or not annotated everywhere, goes to the provenance.
    """
    return instances(path, split, folder, drops, source="lvis", named=_from_url, kept=_VERDICTS)


def coco_rem(path: Path, split: str, folder: str, drops: Drops) -> Iterator[Dialog]:
    """T13 and T14 of COCO-ReM, COCO's objects with refined masks."""
    return instances(path, split, folder, drops, source="coco_rem", named=_from_id)


def _from_url(row: dict[str, Any]) -> str:
    """`train2017/000000000009.jpg`: the pictures of the val split lie in both folders."""
    if "coco_url" not in row:
        return str(need(row, "file_name")[0])
    parts = str(row["coco_url"]).split("/")[-2:]
    if len(parts) < 2:
        raise RecordError("V02", f"coco_url {row['coco_url']!r} names no picture; correct it")
    return "/".join(parts)


def _from_id(row: dict[str, Any]) -> str:
    (number,) = need(row, "id")
    return str(row.get("file_name") or f"{number:012d}.jpg")
