"""How much room every record takes in a row: measured once, kept beside the index, mapped into memory.

Encoding records while planning would cost as much as training on them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt16

from data_pipelines import templates
from data_pipelines.catalog import catalog_key
from data_pipelines.joined import JoinedStore
from data_pipelines.options import EncodeOptions
from data_pipelines.records import Dialog
from data_pipelines.shards import DialogStore, ShardError
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.turns import TurnEncoder
from refvlm_jax.trp.tokens import Unit

_LOG = logging.getLogger(__name__)
KINDS = ("tokens", "images", "prompts", "refs", "groups", "masks", "keypoints", "depth")
"""What a row has limited room for."""
COLUMNS = (*KINDS, "later")
"""Columns of the sizes: `tokens` of a dialogue that opens its row, `later` of one that does not."""
_CHUNK = 2048
_MOST = np.iinfo(np.uint16).max


def measure(dialog: Dialog, encoder: TurnEncoder) -> list[int]:
    """The columns of one record; raises ValueError when it cannot be encoded."""
    first = later = 0
    prompts = refs = groups = 0
    slots = dict.fromkeys((Unit.MASK, Unit.KEYPOINT, Unit.DEPTH), 0)
    shared = encoder.options.shared_picture
    for place, turn in enumerate(dialog.turns):
        prompt = encoder.prompt(dialog, turn, first=place == 0)
        answer = encoder.answer(dialog, turn)
        length = len(prompt.tokens) + len(answer.tokens)
        first, later = first + length, later + length
        if not place and shared:
            first += len(encoder.opening(dialog.image is not None).tokens)
        elif not place:
            again = encoder.prompt(dialog, turn, first=False)
            later += len(again.tokens) - len(prompt.tokens)
        prompts, refs = prompts + len(prompt.regions), refs + len(answer.refs)
        groups += len({ref.group for ref in answer.refs})
        for unit, count in answer.slots.items():
            slots[unit] += count
    picture = int(dialog.image is not None)
    return [first, picture, prompts, refs, groups, *slots.values(), later]


def load_sizes(
    store: DialogStore | JoinedStore,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    *,
    workers: int = 0,
) -> UInt16[np.ndarray, "n columns"]:
    """Sizes of all records, `COLUMNS` each, mapped from `sizes_path`; measured on first use.

    A record that cannot be encoded takes no room: the loader will report it.

    Args:
      store: the records.
      tokenizer: text to ids.
      options: how dialogues are rendered; of the sizes of a row, those of a picture and of a
        region prompt.
      workers: processes that measure; 0 for this one.

    Raises:
      ShardError: the file is damaged, or a record cannot be read.
    """
    path = sizes_path(store, tokenizer, options)
    if path.is_file():
        return _mapped(path, len(store))
    sizes = _measured(store, tokenizer, options, workers)
    try:
        save_array(path, sizes)
    except OSError as error:  # a dataset on a read-only disk is measured at every start
        _LOG.warning("%s: sizes not kept (%s)", path, error.strerror)
        return sizes
    return _mapped(path, len(store))


def sizes_path(
    store: DialogStore | JoinedStore, tokenizer: Tokenizer, options: EncodeOptions
) -> Path:
    """Where the sizes are kept: another name for any other content, tokenizer or rendering."""
    spec = options.spec
    rendering = [
        COLUMNS, tokenizer.digest, templates.version(), options.register, options.plan,
        options.shared_picture, options.templates, options.fixed_template, spec.image_tokens,
        spec.prompt_tokens,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(rendering).encode()).hexdigest()[:16]
    return store.folder / f"pack-{catalog_key(store):016x}-{digest}" / "sizes.npy"


def item_sizes(
    sizes: UInt16[np.ndarray, "n columns"], items: Sequence[Sequence[int]], limits: Sequence[int]
) -> Int[np.ndarray, "items kinds"]:
    """Room of items, each a list of records that share a picture, cut at what a row has.

    What exceeds a row is cut off by the encoder, so that no item takes more than a row.
    """
    ends = np.cumsum([len(item) for item in items])
    starts = np.concatenate([[0], ends[:-1]])
    of_record = np.asarray(sizes[np.concatenate([np.asarray(item) for item in items])], np.int64)
    leads = np.zeros(len(of_record), np.bool_)
    leads[starts] = True
    of_record[~leads, 0] = of_record[~leads, -1]
    found = np.add.reduceat(of_record[:, : len(KINDS)], starts, axis=0)
    found[:, 1] = np.minimum(found[:, 1], 1)  # one picture, however many talk about it
    return np.minimum(found, np.asarray(limits))


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array, all or nothing; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, array)
    os.replace(temporary, path)


def _mapped(path: Path, records: int) -> np.ndarray:
    try:
        sizes = np.load(path, mmap_mode="r", allow_pickle=False)
        if sizes.shape != (records, len(COLUMNS)) or sizes.dtype != np.uint16:
            raise ValueError(f"{sizes.dtype}{list(sizes.shape)} for {records} records")
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: no usable sizes ({error}); delete the file") from error
    return sizes


def _measured(
    store: DialogStore | JoinedStore, tokenizer: Tokenizer, options: EncodeOptions, workers: int
) -> np.ndarray:
    parts = [range(k, min(k + _CHUNK, len(store))) for k in range(0, len(store), _CHUNK)]
    if not parts:
        return np.zeros((0, len(COLUMNS)), np.uint16)
    setup = (store, TurnEncoder(tokenizer, replace(options, longest_template=True), None))
    if not workers or len(parts) == 1:
        return np.concatenate([_measure_part(*setup, part) for part in parts])
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, setup) as pool:
        return np.concatenate(list(pool.map(_measure_own, parts)))


_worker: dict[str, Any] = {}


def _start(store: DialogStore | JoinedStore, encoder: TurnEncoder) -> None:
    _worker.update(store=store, encoder=encoder)


def _measure_own(part: range) -> np.ndarray:
    return _measure_part(_worker["store"], _worker["encoder"], part)


def _measure_part(
    store: DialogStore | JoinedStore, encoder: TurnEncoder, part: range
) -> np.ndarray:
    sizes = np.zeros((len(part), len(COLUMNS)), np.uint16)
    for place, record in enumerate(part):
        dialog = store[record]
        try:
            sizes[place] = np.minimum(measure(dialog, encoder), _MOST)
        except (ValueError, KeyError, IndexError) as error:
            _LOG.warning("%s cannot be packed: %s", store.describe(record), error)
    return sizes
