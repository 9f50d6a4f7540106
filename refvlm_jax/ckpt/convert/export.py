"""`refvlm convert export`: a checkpoint of this library as PyTorch weights, streamed.

The result is a folder in the layout of the released exports (the language model at the root, one
sub-folder a part, each with its config.json), or one flat safetensors file with the keys of a
training checkpoint.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refvlm_jax.ckpt.convert.files import OneBehind, check_free, fresh
from refvlm_jax.ckpt.convert.import_ import EXTRA
from refvlm_jax.ckpt.convert.lora import adapter_rows, merge_lora
from refvlm_jax.ckpt.convert.model_config import table
from refvlm_jax.ckpt.convert.names import Row, Rows, grouped, split
from refvlm_jax.ckpt.convert.orbax_io import StoredCheckpoint, open_checkpoint
from refvlm_jax.ckpt.convert.part import Part, at, owner, parts, put
from refvlm_jax.ckpt.convert.parts.llama import write_lora
from refvlm_jax.ckpt.convert.reader import CONFIG_KEY, OPEN_CLIP_CONFIG, ROOT_CONFIG
from refvlm_jax.ckpt.convert.safetensors_io import Entry, SafetensorsWriter
from refvlm_jax.ckpt.convert.tensors import DTYPES, ConvertError, contiguous
from refvlm_jax.ckpt.convert.whole import WholeConfig, read_config

SHARD_BYTES = 5 * 10**9
Lora = Literal["merge", "adapter"]


@dataclass(frozen=True)
class Item:
    """Parameters that are made of the same tensors, or one unused tensor."""

    entries: tuple[Entry, ...]
    """Keys of a training checkpoint, in the order `read` gives them."""
    read: Any
    """() -> iterator of arrays; nothing is read before."""


@dataclass(frozen=True)
class ExportPlan:
    """What a checkpoint becomes."""

    config: WholeConfig
    torch_config: Mapping[str, Any]
    """Configuration of every part under its PyTorch names, of the checkpoint as it is now."""
    parts: tuple[Part, ...]
    items: tuple[Item, ...]
    adapter: tuple[Item, ...]
    """LoRA tensors that are exported apart."""


def plan_export(
    stored: StoredCheckpoint,
    *,
    lora: Lora = "merge",
    dtype: str = "keep",
    vocab_size: int | None = None,
) -> ExportPlan:
    """Decides, from metadata alone, what becomes of every array.

    Raises:
      ConvertError: an array has no counterpart in PyTorch, or one that it needs is missing.
    """
    meta, shapes = stored.meta, stored.parameters
    config = _config(meta, vocab_size)
    chosen = _parts(meta, shapes)
    rows: Rows = []
    for part in chosen:
        rows += [r for r in table(config, part) if r.name in shapes or not r.optional]
    _check(stored, rows)
    torch_config = _torch_config(meta, config, chosen)
    kept = meta.get("torch_dtypes") or {}
    build = _Items(stored, kept, dtype)
    low_rank = {row.name: row for row in rows if ".lora." in row.name}
    factor = config.llama.lora.alpha / config.llama.lora.rank if config.llama.lora else 0.0
    items, adapter = [], []
    for group in grouped(rows):
        if group[0].name in low_rank:
            if lora == "adapter":
                adapter.append(build.plain(group))
        elif lora == "merge" and (pair := adapter_rows(group[0], low_rank)):
            items.append(build.merged(group, pair, factor))
        else:
            items.append(build.plain(group))
    items += [build.unused(name) for name in stored.items.get(EXTRA, {})]
    if not low_rank or lora == "merge":
        torch_config.pop("llm_lora", None)
    return ExportPlan(config, torch_config, tuple(chosen), tuple(items), tuple(adapter))


def export_weights(
    checkpoint: Path,
    out: Path,
    *,
    step: int | None = None,
    lora: Lora = "merge",
    dtype: str = "keep",
    vocab_size: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> ExportPlan:
    """Converts and writes; `out` appears only when everything succeeded.

    Args:
      out: a folder, or a file that ends in .safetensors.
      lora: `merge` adds LoRA into the kernels beside it; `adapter` writes it as a PEFT folder.
      dtype: `keep`, or the one dtype of all floating-point tensors: float32, bfloat16, float16.
      vocab_size: rows of the vocabulary to keep; by default those of tokens.

    Raises:
      ConvertError: `out` exists, the checkpoint is damaged, or PyTorch has no such model.
    """
    check_free(out)
    stored = open_checkpoint(checkpoint, step)
    plan = plan_export(stored, lora=lora, dtype=dtype, vocab_size=vocab_size)
    with fresh(out) as target:
        if out.suffix == ".safetensors":
            metadata = {CONFIG_KEY: json.dumps(plan.torch_config)}
            _write_file(target, (*plan.items, *plan.adapter), "", metadata)
        else:
            target.mkdir()
            _write_folder(target, plan, shard_bytes)
    return plan


def _config(meta: Mapping[str, Any], vocab_size: int | None) -> WholeConfig:
    tree = (meta.get("config") or {}).get("model")
    if not isinstance(tree, Mapping):
        raise ConvertError(
            "the checkpoint does not say which model it holds; it cannot be exported"
        )
    config = read_config(tree, meta.get("converter") or {})
    if vocab_size is None:
        return config
    padding = config.llama.vocab_rows - vocab_size
    if padding < 0:
        raise ConvertError(
            f"--vocab-size {vocab_size} is more than the {config.llama.vocab_rows} rows there are"
        )
    return replace(
        config, llama=replace(config.llama, vocab_size=vocab_size, vocab_padding=padding)
    )


def _parts(meta: Mapping[str, Any], names: Mapping[str, Any]) -> list[Part]:
    found = {name.split(".")[0] for name in names}
    if "parts" in meta:
        found |= set(meta["parts"])
    chosen = [part for part in parts() if part.name in found]
    if unknown := sorted(found - {part.name for part in chosen}):
        raise ConvertError(
            f"the checkpoint's part {unknown[0]!r} has no PyTorch counterpart; it cannot be exported"
        )
    return chosen


def _check(stored: StoredCheckpoint, rows: Sequence[Row]) -> None:
    names = {row.name for row in rows}
    where = f"checkpoint {stored.folder}"
    if missing := sorted(names - stored.parameters.keys()):
        raise ConvertError(f"{where} lacks {missing[0]}, which its configuration asks for")
    if unknown := sorted(stored.parameters.keys() - names):
        raise ConvertError(
            f"{where} holds {unknown[0]}, which has no PyTorch counterpart under its configuration"
        )


def _torch_config(
    meta: Mapping[str, Any], config: WholeConfig, chosen: Sequence[Part]
) -> dict[str, Any]:
    """As imported where a part is still what it was; else what it was, overwritten by what it is."""
    old: dict[str, Any] = json.loads(json.dumps(meta.get("torch_config") or {}))
    own = replace(config, llama=replace(config.llama, vocab_padding=0))
    if "vision" in {part.name for part in chosen}:
        old["visual_select_layer"] = config.vision.feature_layer
    old.pop("llm_lora", None)
    if own.llama.lora:
        given = (meta.get("torch_config") or {}).get("llm_lora") or {}
        old["llm_lora"] = {**given, **write_lora(own.llama.lora)}
    found = json.loads(json.dumps(old))
    for part in chosen:
        before = at(old, part.field)
        if before is None or part.read(before, old) != getattr(own, part.attribute):
            before = {**(before or {}), **part.write(own)}
        names = {"model_type": part.model_types[0], "architectures": list(part.architectures)}
        put(found, part.field, {**names, **before, "model_type": _type(part, before)})
    return found


def _type(part: Part, config: Mapping[str, Any]) -> str:
    given = config.get("model_type")
    return given if given in part.model_types else part.model_types[0]


class _Items:
    """Makes the items of one checkpoint."""

    def __init__(self, stored: StoredCheckpoint, kept: Mapping[str, str], dtype: str):
        self._stored, self._kept = stored, kept
        if dtype not in ("keep", "float32", "bfloat16", "float16"):
            raise ConvertError(f"dtype {dtype!r} is none of keep, float32, bfloat16, float16")
        names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
        self._dtype = None if dtype == "keep" else DTYPES[names[dtype]]

    def plain(self, group: Rows) -> Item:
        """Parameters as they are."""
        return Item(
            self._entries(group[0]), lambda: split(group, [self._read(r.name) for r in group])
        )

    def merged(self, group: Rows, pair: tuple[Row, Row], factor: float) -> Item:
        """A kernel with its LoRA added, in fp32."""
        (row,) = group

        def read() -> Iterator[tuple[str, np.ndarray]]:
            a, b = (self._read(r.name) for r in pair)
            return split(group, [merge_lora(self._read(row.name), a, b, factor)])

        return Item(self._entries(row), read)

    def unused(self, name: str) -> Item:
        """A tensor the model does not use."""
        key, info = name.removeprefix(f"{EXTRA}."), self._stored.items[EXTRA][name]
        dtype = self._target(np.dtype(info.dtype))
        return Item(
            (Entry(key, info.shape, dtype),),
            lambda: iter([(key, self._stored.read(EXTRA, name))]),
        )

    def _entries(self, row: Row) -> tuple[Entry, ...]:
        info = self._stored.parameters[row.name]
        shape, dtype = row.torch_shape(info.shape), np.dtype(info.dtype)
        return tuple(
            Entry(key, shape, self._target(DTYPES[self._kept[key]] if key in self._kept else dtype))
            for key in row.keys
        )

    def _target(self, dtype: np.dtype) -> np.dtype:
        floating = dtype.kind == "f" or dtype in (DTYPES["BF16"], DTYPES["F16"])
        return self._dtype if self._dtype is not None and floating else dtype

    def _read(self, name: str) -> np.ndarray:
        return self._stored.read(self._stored.where(name), name)


def _write_folder(folder: Path, plan: ExportPlan, shard_bytes: int) -> None:
    root = {k: v for k, v in plan.torch_config.items() if not isinstance(v, Mapping)}
    if root:
        _write_json(folder / ROOT_CONFIG, root)
    for part in plan.parts:
        items = [i for i in plan.items if owner(i.entries[0].name) is part]
        place = folder / part.folder
        place.mkdir(exist_ok=True)
        config = at(plan.torch_config, part.field) or {}
        if part.name == "tower":
            _write_json(place / OPEN_CLIP_CONFIG, {"model_cfg": config.get("model_cfg", {})})
        _write_json(place / "config.json", _with_dtype(config, items))
        stem = "open_clip_model" if part.name == "tower" else "model"
        _write_shards(place, items, part.prefix, stem, shard_bytes)
    if plan.adapter:
        place = folder / "llm_adapter"
        place.mkdir()
        _write_json(place / "adapter_config.json", plan.torch_config["llm_lora"])
        renamed = [_renamed(item, "llm.", "base_model.model.") for item in plan.adapter]
        _write_file(place / "adapter_model.safetensors", renamed, "", {})


def _with_dtype(config: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Any]:
    """config.json names the dtype of its weights, if there is only one."""
    dtypes = {entry.dtype.name for item in items for entry in item.entries}
    rest = {k: v for k, v in config.items() if k not in ("auto_map", "dtype", "torch_dtype")}
    return {**rest, "torch_dtype": dtypes.pop()} if len(dtypes) == 1 else rest


def _renamed(item: Item, old: str, new: str) -> Item:
    name = lambda key: new + key.removeprefix(old)  # noqa: E731
    entries = tuple(replace(entry, name=name(entry.name)) for entry in item.entries)
    return Item(entries, lambda: ((name(key), array) for key, array in item.read()))


def _write_shards(
    folder: Path, items: Sequence[Item], prefix: str, stem: str, shard_bytes: int
) -> None:
    """One file, or several with an index where there is more than `shard_bytes`."""
    shards = _shards([entry for item in items for entry in item.entries], shard_bytes)
    if len(shards) <= 1:
        _write_file(folder / f"{stem}.safetensors", items, prefix, {})
        return
    names = [f"{stem}-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    total = sum(entry.nbytes for shard in shards for entry in shard)
    places = {
        entry.name.removeprefix(prefix): name
        for name, shard in zip(names, shards, strict=True)
        for entry in shard
    }
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / f"{stem}.safetensors.index.json", index)
    flow = _flow(items)
    for name, shard in zip(names, shards, strict=True):
        _write_entries(folder / name, shard, flow, prefix, {})


def _shards(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    found: list[list[Entry]] = []
    room = 0
    for entry in entries:
        if not found or entry.nbytes > room:
            found.append([])
            room = limit
        found[-1].append(entry)
        room -= entry.nbytes
    return found


def _write_file(
    path: Path, items: Sequence[Item], prefix: str, metadata: Mapping[str, str]
) -> None:
    entries = [entry for item in items for entry in item.entries]
    _write_entries(path, entries, _flow(items), prefix, metadata)


def _flow(items: Sequence[Item]) -> Iterator[tuple[str, np.ndarray]]:
    for item in items:
        yield from item.read()


def _write_entries(
    path: Path,
    entries: Sequence[Entry],
    flow: Iterator[tuple[str, np.ndarray]],
    prefix: str,
    metadata: Mapping[str, str],
) -> None:
    named = [replace(entry, name=entry.name.removeprefix(prefix)) for entry in entries]
    with (
        SafetensorsWriter(path, named, metadata) as file,
        ThreadPoolExecutor(1) as writer,
        OneBehind() as behind,
    ):
        for entry in named:
            key, array = next(flow)
            assert key.removeprefix(prefix) == entry.name
            data = contiguous(array).astype(entry.dtype, copy=False)
            # A view would keep its whole stack until it is written.
            data = data if data.base is None else data.copy()
            behind.start(writer.submit, file.write, entry.name, data)
            del array, data


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def exported_tensors(
    stored: StoredCheckpoint, plan: ExportPlan
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of an export by its training-checkpoint key, one parameter at a time."""
    for item in (*plan.items, *plan.adapter):
        dtypes = {entry.name: entry.dtype for entry in item.entries}
        for key, array in item.read():
            yield key, contiguous(array).astype(dtypes[key], copy=False)
