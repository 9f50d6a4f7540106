"""The manifest of a built dataset: its shards, counts and picture folder."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
REBUILD = "build the dataset again or copy it again"


class ShardError(ValueError):
    """A dataset folder, shard or record cannot be read; the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard as the manifest describes it."""

    name: str
    records: int
    bytes: int
    sha256: str


def write_manifest(
    out_dir: Path,
    *,
    stores: Mapping[str, Sequence[ShardInfo]],
    image_root: str,
    counts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> None:
    """Writes `manifest.json` atomically; a dataset is complete once it is there.

    Args:
      stores: shards by stem.
      image_root: folder of the pictures. A relative path (to the working directory) is kept
        relative to the dataset, so that both can move together.
      counts: whatever was counted while building.
      extra: further top-level entries.
    """
    folder = Path(out_dir)
    root = image_root if os.path.isabs(image_root) else os.path.relpath(image_root, folder)
    content = {
        **extra,
        "schema_version": MANIFEST_VERSION,
        "image_root": root,
        "counts": dict(counts),
        "stores": {stem: [asdict(shard) for shard in shards] for stem, shards in stores.items()},
    }
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def read_manifest(out_dir: Path, *, verify: bool = False) -> dict[str, Any]:
    """The manifest, with `stores` as lists of ShardInfo by stem and `image_root` resolved.

    Args:
      out_dir: the dataset.
      verify: also compares the checksum of every shard, which reads all of them.

    Raises:
      ShardError: no manifest, a damaged one or one of another version; or a shard that is missing
        or of another size or checksum.
    """
    folder = Path(out_dir)
    manifest = _load_json(folder / MANIFEST)
    if manifest.get("schema_version") != MANIFEST_VERSION:
        raise ShardError(
            f"{folder / MANIFEST}: schema_version {manifest.get('schema_version')}, "
            f"expected {MANIFEST_VERSION}; build the dataset again with this version"
        )
    try:
        manifest["image_root"] = os.path.normpath(folder / manifest["image_root"])
        manifest["stores"] = {
            stem: [ShardInfo(**shard) for shard in shards]
            for stem, shards in manifest["stores"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{folder / MANIFEST}: damaged ({error!r}); {REBUILD}") from error
    for shard in (s for shards in manifest["stores"].values() for s in shards):
        _check_shard(folder / shard.name, shard, verify)
    return manifest


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ShardError(
            f"{path}: no manifest ({error.strerror}); give the folder of a finished build"
        ) from error
    except ValueError as error:
        raise ShardError(f"{path}: not JSON ({error}); {REBUILD}") from error
    if not isinstance(content, dict):
        raise ShardError(f"{path}: expected an object at the top level; {REBUILD}")
    return content


def _check_shard(path: Path, shard: ShardInfo, verify: bool) -> None:
    if not path.is_file():
        raise ShardError(f"{path}: shard is missing; {REBUILD}")
    if (size := path.stat().st_size) != shard.bytes:
        raise ShardError(
            f"{path}: shard has {size} bytes, the manifest says {shard.bytes}; {REBUILD}"
        )
    if verify and file_sha256(path) != shard.sha256:
        raise ShardError(f"{path}: shard does not match its sha256 checksum; {REBUILD}")


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
