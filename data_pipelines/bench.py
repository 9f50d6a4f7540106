"""How fast the pipeline is, stage by stage, on a dataset."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_pipelines.encode import EncodeOptions, encode_row
from data_pipelines.images import Decoding, load_scaled, square_of
from data_pipelines.index import Index
from data_pipelines.loader import LoaderConfig, make_loader
from data_pipelines.plan import Plan, plan_index
from data_pipelines.rasterise import prompt_mask, target_mask
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore
from data_pipelines.squares import SquareReader
from data_pipelines.synthetic_index import write_synthetic_index
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.turns import TurnEncoder
from refvlm_jax.trp.tokens import Unit

_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage takes."""

    name: str
    samples: int
    images: int
    """Pictures it handled; 0 where it handles none."""
    wall: float
    """Seconds by the clock."""
    cpu: float
    """Seconds of processors, in all threads of this process."""

    @property
    def cpu_ms(self) -> float:
        """Processor time of a sample in milliseconds."""
        return 1000.0 * self.cpu / self.samples


def measure_stages(
    store: DialogStore,
    tokenizer: Tokenizer,
    root: Path,
    options: EncodeOptions,
    *,
    samples: int,
    decoding: Decoding,
) -> list[Stage]:
    """Each stage alone in this thread over the first `samples` records, then whole rows.

    `whole` makes every row from nothing; `assemble` is what it takes beyond the other stages.
    """
    count, size = min(samples, len(store)), options.spec.image_size
    dialogs, read = _timed("read", count, 0, lambda k: store[k])
    shown = [dialog.image for dialog in dialogs if dialog.image is not None]
    pictures, decode = _timed(
        "decode", count, len(shown), lambda k: load_scaled(shown[k], root, size, decoding),
        calls=len(shown),
    )  # fmt: skip
    _, resize = _timed(
        "resize and pad", count, len(shown), lambda k: square_of(pictures[k], size),
        calls=len(shown),
    )  # fmt: skip
    pictures.clear()
    _, rasterise = _timed("rasterise", count, 0, lambda k: _rasterise(dialogs[k], options))
    encoder = TurnEncoder(tokenizer, options, np.random.default_rng(0))
    _, tokenise = _timed("tokenise", count, 0, lambda k: _tokenise(dialogs[k], encoder))
    squares = SquareReader(root, size, decoding=decoding)
    rng = np.random.default_rng(0)
    _, whole = _timed(
        "whole", count, len(shown),
        lambda k: encode_row([store[k]], root, tokenizer, options, rng, squares=squares) and None,
    )  # fmt: skip
    parts = [read, decode, resize, rasterise, tokenise]
    rest = replace(
        whole,
        name="assemble",
        images=0,
        wall=max(0.0, whole.wall - sum(stage.wall for stage in parts)),
        cpu=max(0.0, whole.cpu - sum(stage.cpu for stage in parts)),
    )
    return [*parts, rest, whole]


def measure_loader(
    plan: Plan,
    store: DialogStore,
    tokenizer: Tokenizer,
    root: Path,
    options: EncodeOptions,
    *,
    samples: int,
    threads: int,
    decoding: Decoding,
) -> Stage:
    """The loader as training runs it, without remembering pictures."""
    config = LoaderConfig(batch_size=_BATCH, threads=threads, cache_bytes=0, decoding=decoding)
    loader = make_loader(plan, store, tokenizer, root, options, config)
    try:
        next(loader)  # starts threads and opens files
        batches = max(1, samples // _BATCH)
        _, stage = _timed(
            f"loader, {threads} threads", batches * _BATCH, batches * _BATCH,
            lambda _: next(loader) and None, calls=batches,
        )  # fmt: skip
    finally:
        loader.close()
    return stage


def slowest(stages: Sequence[Stage]) -> Stage:
    """The part that takes most of a sample."""
    return max((s for s in stages if s.name != "whole"), key=lambda stage: stage.cpu)


def measure_index(folder: Path, records: int) -> tuple[float, float]:
    """Seconds to open a synthetic index, and to draw a thousand rows from it.

    Args:
      folder: a new folder for its files, 17 bytes a record.
      records: how many.
    """
    write_synthetic_index(folder, records)
    start = time.perf_counter()
    plan = plan_index(Index.open(folder), weights={}, merge=4, seed=0)
    opened = time.perf_counter()
    for row in range(1000):
        plan.rows(row)
    return opened - start, time.perf_counter() - opened


def _timed(
    name: str, samples: int, images: int, call: Callable, *, calls: int | None = None
) -> tuple[list, Stage]:
    wall, cpu = time.perf_counter(), time.process_time()
    results = [call(k) for k in range(samples if calls is None else calls)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return results, Stage(name=name, samples=samples, images=images, wall=wall, cpu=cpu)


def _rasterise(dialog: Dialog, options: EncodeOptions) -> None:
    image, spec = dialog.image, options.spec
    if image is None:
        return
    for turn in dialog.turns:
        for prompt in turn.prompts[: spec.prompts]:
            region = dialog.regions[prompt.region]
            prompt_mask(region, prompt.kind, image.width, image.height, spec.image_size)
        wanted = [k for span in turn.spans if span.unit is Unit.MASK for k in span.targets]
        for mask in (dialog.regions[k].mask for k in wanted[: spec.mask_refs]):
            if mask is not None:
                target_mask(mask, image.width, image.height, spec.mask_size)


def _tokenise(dialog: Dialog, encoder: TurnEncoder) -> None:
    for place, turn in enumerate(dialog.turns):
        encoder.prompt(dialog, turn, first=place == 0)
        encoder.answer(dialog, turn)
