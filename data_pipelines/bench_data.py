"""A made-up dataset of photographs' size, to measure the pipeline where no dataset is at hand."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines import records
from data_pipelines.records import Dialog, Mask, MediaRef, Region, Span, Turn
from data_pipelines.shards import ShardWriter, write_manifest
from refvlm_jax import rle
from refvlm_jax.trp.tokens import Unit

WIDTH, HEIGHT = 640, 480
_THINGS = ("dog", "person", "car", "cup", "chair", "tree")


def write_bench_data(folder: Path, pictures: int, *, seed: int = 0) -> Path:
    """Writes `pictures` JPEGs of 640 x 480 and two dialogues about each; returns the dataset.

    One asks for boxes, the other for masks, of the same one to six objects.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with ShardWriter(folder / "data", "bench") as writer:
        for k in range(pictures):
            image = _picture(folder / "images", f"{k}.jpg", rng)
            regions = [_region(rng) for _ in range(int(rng.integers(1, 7)))]
            for unit, task, command in (
                (Unit.BOX, "T13", "detection"),
                (Unit.MASK, "T14", "segmentation"),
            ):
                turn = _turn(regions, unit, command)
                dialog = Dialog(
                    uid=f"bench/train/{k}/{task}", source="bench", split="train", task_id=task,
                    turns=[turn], image=image, regions=regions,
                )  # fmt: skip
                writer.write(records.encode(dialog))
    write_manifest(
        folder / "data", stores={"bench": writer.shards}, image_root=str(folder / "images"),
        counts={"dialogs": 2 * pictures}, extra={},
    )  # fmt: skip
    return folder / "data"


def _picture(root: Path, name: str, rng: np.random.Generator) -> MediaRef:
    """Smooth colours with some grain: about 100 kB, as a photograph."""
    coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    grain = rng.normal(0.0, 8.0, (HEIGHT, WIDTH, 1))
    pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(root / name, quality=90)
    return MediaRef(path=name, width=WIDTH, height=HEIGHT)


def _region(rng: np.random.Generator) -> Region:
    """An ellipse that covers about a twentieth of the picture."""
    w, h = rng.integers(40, 240, 2)
    x, y = rng.integers(0, WIDTH - w), rng.integers(0, HEIGHT - h)
    rows, cols = np.ogrid[:HEIGHT, :WIDTH]
    inside = ((cols - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1.0
    return Region(
        category=str(rng.choice(_THINGS)),
        box=(float(x), float(y), float(x + w), float(y + h)),
        mask=Mask(h=HEIGHT, w=WIDTH, counts=rle.encode(inside)),
    )


def _turn(regions: list[Region], unit: Unit, command: str) -> Turn:
    """All objects by category, as detection answers."""
    answer, spans = "", []
    for name in sorted({region.category for region in regions}):
        answer += ", " if answer else ""
        targets = [k for k, region in enumerate(regions) if region.category == name]
        end = len(answer) + len(name)
        spans.append(Span(start=len(answer), end=end, unit=unit, targets=targets))
        answer += name
    bank = "det" if unit is Unit.BOX else "seg"
    return Turn(task_name=command, bank=bank, answer=f"{answer}.", spans=spans)
