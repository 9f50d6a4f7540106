"""Tokenizers: any Hugging Face fast tokenizer from a local folder, or the small bundled one."""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from refvlm_jax.trp.prompt import WIRE_PHRASES, WIRE_WORDS
from refvlm_jax.trp.tokens import SPECIAL_TOKENS

BUNDLED = Path(__file__).parent / "assets" / "tokenizer"
_CONTROL = ("<pad>", "<s>", "</s>")


class TokenizerError(ValueError):
    """A tokenizer folder cannot be used."""


class Tokenizer:
    """Text to ids and back, with the special tokens of the grammar as single ids."""

    def __init__(self, backend: FastTokenizer, bos: str, eos: str, pad: str | None):
        self._backend = backend
        # An added token must never be cut out of a text twice with blanks around it stripped.
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
        self.bos_id, self.eos_id = self.id_of(bos), self.id_of(eos)
        self.pad_id = self.id_of(pad) if pad else 0

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def id_of(self, token: str) -> int:
        """Id of a token by its string.

        Raises:
          TokenizerError: the vocabulary lacks it.
        """
        if (found := self._backend.token_to_id(token)) is None:
            raise TokenizerError(f"the tokenizer has no token {token!r}")
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a text without any begin or end token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a local Hugging Face folder, or the bundled one for None.

    Raises:
      TokenizerError: the folder is missing, holds no fast tokenizer, or names no end token.
    """
    folder = BUNDLED if path is None else Path(path)
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        return _converted(folder)
    try:
        backend = FastTokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise TokenizerError(f"{file}: not a fast tokenizer ({error})") from None
    names = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    bos, eos, pad = (_content(names.get(f"{kind}_token")) for kind in ("bos", "eos", "pad"))
    if not eos:
        raise TokenizerError(f"{settings}: names no eos_token; add one")
    return Tokenizer(backend, bos or eos, eos, pad)


def _converted(folder: Path) -> Tokenizer:
    """A folder with only slow-tokenizer files, converted through transformers."""
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder; point data.tokenizer to a local tokenizer")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
        backend = loaded.backend_tokenizer
    except Exception as error:  # transformers raises many unrelated types
        raise TokenizerError(f"{folder}: not a tokenizer folder ({error})") from None
    return Tokenizer(backend, loaded.bos_token, loaded.eos_token, loaded.pad_token)


def _content(token: str | dict | None) -> str | None:
    """Hugging Face writes special tokens as text or as a dictionary."""
    return token.get("content") if isinstance(token, dict) else token


def train_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> None:
    """Trains a byte-level BPE and writes it as a Hugging Face folder, replacing `out` at once.

    Wire-format strings are whole (non-special) tokens, so that boilerplate costs one token each;
    words are split from their neighbours first, so that no merge ever joins two of them.
    """
    backend = FastTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    wire = [
        AddedToken(text, single_word=text in WIRE_WORDS, normalized=False) for text in WIRE_PHRASES
    ]
    reserved = len(_CONTROL) + len(SPECIAL_TOKENS) + len(wire)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - reserved + len(_CONTROL),
        special_tokens=list(_CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    backend.add_tokens(wire)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=".tokenizer"))
    backend.save(str(temporary / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config = {**names, "tokenizer_class": "PreTrainedTokenizerFast"}
    (temporary / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    temporary.chmod(0o755)
    temporary.rename(out)


def world_texts(world: Path) -> Iterator[str]:
    """Every sentence of a shapes world's annotation files, and every question template."""
    from data_pipelines.templates import banks, sentences

    for bank in banks():
        yield from sentences(bank)
    for path in sorted(Path(world).glob("**/*_train.json*")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        for line in lines:
            yield from _sentences(json.loads(line))


def _sentences(value: object) -> Iterator[str]:
    keys = ("caption", "expression", "question", "sentence", "multiple_choice_answer", "name")
    if isinstance(value, dict):
        for key, item in value.items():
            if key in keys and isinstance(item, str):
                yield item
                yield " " + item
            else:
                yield from _sentences(item)
    elif isinstance(value, list):
        for item in value:
            yield from _sentences(item)


def main() -> None:
    """Trains the bundled tokenizer on the text of a shapes world."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--vocab-size", type=int, default=1024)
    args = parser.parse_args()
    train_tokenizer(world_texts(args.world), args.out, args.vocab_size)
    print(f"{args.out}: {load_tokenizer(args.out).vocab_size} tokens")


if __name__ == "__main__":
    main()
