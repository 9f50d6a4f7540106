"""A copy of a built dataset that TensorFlow Datasets reads as `vt_instruct`, made without TensorFlow.

TFDS finds a dataset by its folder `<out>/vt_instruct/1.0.0` with `dataset_info.json`, `features.json`
and shards of `tf.train.Example` messages. All of it is written here: TFDS itself writes ArrayRecord only
with TensorFlow installed. Every example holds the record as it is (`record`, msgpack, see
`records.decode`) and the fields people look at as text and numbers.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from rich.progress import track

from data_pipelines import templates
from data_pipelines.manifest import ShardError, read_manifest
from data_pipelines.records import Dialog, Turn, encode
from data_pipelines.shards import WRITER_OPTIONS, DialogStore

NAME, VERSION = "vt_instruct", "1.0.0"
_ABOUT = (
    "VT-Instruct dialogues about pictures, built by refvlm_jax. `record` is the whole dialogue "
    "(msgpack), read by data_pipelines.records.decode; other fields are its text and numbers."
)
_TEXT, _WHOLE, _TEXTS = "text", "int64", "texts"
_FIELDS = {
    "uid": _TEXT, "source": _TEXT, "task_id": _TEXT, "image_path": _TEXT, "image_width": _WHOLE,
    "image_height": _WHOLE, "image": _TEXT, "questions": _TEXTS, "answers": _TEXTS, "record": _TEXT,
}  # fmt: skip
_MODULE = "tensorflow_datasets.core.features"


def export_tfds(
    folders: Sequence[Path],
    out: Path,
    *,
    pictures: bool = False,
    records_per_shard: int = 20000,
    progress: bool = True,
) -> Path:
    """Copies built datasets into one TFDS dataset; their records' splits become its splits.

    Args:
      folders: built datasets.
      out: TFDS's `data_dir`.
      pictures: also copies the encoded picture of every record into its field `image`, which is empty
        otherwise.
      records_per_shard: at most.

    Returns:
      The folder for `tfds.builder_from_directory`.

    Raises:
      ShardError: a folder holds no dataset, a record or picture cannot be read, or the result is there
        already.
    """
    final = Path(out) / NAME / VERSION
    if final.exists():
        raise ShardError(f"{final}: exists already; remove it or give another folder")
    growing = final.with_name(f".{VERSION}.{os.getpid()}.tmp")
    growing.mkdir(parents=True)
    try:
        _write(folders, growing, pictures, records_per_shard, progress)
        os.replace(growing, final)
    finally:
        shutil.rmtree(growing, ignore_errors=True)
    return final


def _write(
    folders: Sequence[Path], growing: Path, pictures: bool, limit: int, progress: bool
) -> None:
    splits: dict[str, _Split] = {}
    try:
        for dialog, picture in track(
            _records(folders, pictures), "copying", sum(len(DialogStore(f)) for f in folders),
            disable=not progress,
        ):  # fmt: skip
            name = "".join(c if c.isalnum() else "_" for c in dialog.split)
            split = splits.setdefault(name, _Split(name, growing, limit))
            split.write(example(_fields(dialog, picture)))
    finally:
        for split in splits.values():
            split.close()
    for split in splits.values():
        split.name_shards()
    _write_json(growing / "features.json", features())
    _write_json(growing / "dataset_info.json", _info(list(splits.values())))


def _records(folders: Iterable[Path], pictures: bool) -> Iterator[tuple[Dialog, bytes]]:
    for folder in folders:
        store, root = DialogStore(folder), Path(read_manifest(folder)["image_root"])
        for index in range(len(store)):
            dialog = store[index]
            yield dialog, _picture(dialog, root) if pictures else b""


def _picture(dialog: Dialog, root: Path) -> bytes:
    image = dialog.image
    if image is None:
        return b""
    try:
        return image.data if image.data is not None else (root / image.path).read_bytes()
    except OSError as error:
        raise ShardError(
            f"{root / image.path}: picture cannot be read ({error.strerror}); fetch the file, or "
            "export without pictures"
        ) from error


@dataclass
class _Split:
    """The shards of one split while they grow."""

    name: str
    folder: Path
    limit: int
    lengths: list[int] = field(default_factory=list)
    bytes: int = 0
    _writer: ArrayRecordWriter | None = None

    def write(self, data: bytes) -> None:
        if self._writer is None or self.lengths[-1] == self.limit:
            self.close()
            self._writer = ArrayRecordWriter(str(self._growing(len(self.lengths))), WRITER_OPTIONS)
            self.lengths.append(0)
        self._writer.write(data)
        self.lengths[-1] += 1
        self.bytes += len(data)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def name_shards(self) -> None:
        for k in range(len(self.lengths)):
            name = f"{NAME}-{self.name}.array_record-{k:05d}-of-{len(self.lengths):05d}"
            os.replace(self._growing(k), self.folder / name)

    def _growing(self, shard: int) -> Path:
        return self.folder / f".{self.name}-{shard:05d}.growing"


def _fields(dialog: Dialog, picture: bytes) -> dict[str, list[bytes] | list[int]]:
    image = dialog.image
    return {
        "uid": [dialog.uid.encode()],
        "source": [dialog.source.encode()],
        "task_id": [dialog.task_id.encode()],
        "image_path": [image.path.encode() if image else b""],
        "image_width": [image.width if image else 0],
        "image_height": [image.height if image else 0],
        "image": [picture],
        "questions": [_question(turn).encode() for turn in dialog.turns],
        "answers": [turn.answer.encode() for turn in dialog.turns],
        "record": [encode(dialog)],
    }


def _question(turn: Turn) -> str:
    """The question in the words of the first template."""
    return turn.literal or templates.render(turn.bank, turn.slots, regions=len(turn.prompts))


def example(fields: Mapping[str, Sequence[bytes] | Sequence[int]]) -> bytes:
    """A `tf.train.Example` message of lists of bytes or of whole numbers >= 0, names in order."""
    entries = [
        _message(1, _message(1, name.encode()) + _message(2, _feature(values)))
        for name, values in sorted(fields.items())
    ]
    return _message(1, b"".join(entries))


def _feature(values: Sequence[bytes] | Sequence[int]) -> bytes:
    if values and isinstance(values[0], int):
        return _message(3, _message(1, b"".join(_varint(v) for v in values)))  # type: ignore[arg-type]
    return _message(1, b"".join(_message(1, v) for v in values))  # type: ignore[arg-type]


def _message(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, low ones first; the eighth bit says that more follow."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def features() -> dict:
    """The content of `features.json`."""
    text = {"pythonClassName": f"{_MODULE}.text_feature.Text", "text": {}}
    kinds = {
        _TEXT: text,
        _WHOLE: {
            "pythonClassName": f"{_MODULE}.scalar.Scalar",
            "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
        },
        _TEXTS: {
            "pythonClassName": f"{_MODULE}.sequence_feature.Sequence",
            "sequence": {"feature": text, "length": "-1"},
        },
    }
    return {
        "type": f"{_MODULE}.features_dict.FeaturesDict",
        "content": {"features": {name: kinds[kind] for name, kind in _FIELDS.items()}},
        "proto_cls": "tensorflow_datasets.FeaturesDict",
    }


def _info(splits: Sequence[_Split]) -> dict:
    """The content of `dataset_info.json`; 64-bit numbers are strings in a proto's JSON."""
    return {
        "name": NAME,
        "version": VERSION,
        "description": _ABOUT,
        "fileFormat": "array_record",
        "splits": [
            {
                "name": split.name,
                "shardLengths": [str(n) for n in split.lengths],
                "numBytes": str(split.bytes),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split in splits
        ],
    }


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
