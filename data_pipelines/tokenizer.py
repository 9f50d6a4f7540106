"""Tokenizers: any Hugging Face fast tokenizer from a local folder, or the small bundled one."""

import argparse
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from refvlm_jax.trp.prompt import WIRE_PHRASES, WIRE_WORDS
from refvlm_jax.trp.tokens import SPECIAL_TOKENS

BUNDLED = Path(__file__).parent / "assets" / "tokenizer"
_PAD, _BOS, _EOS = _CONTROL = ("<pad>", "<s>", "</s>")
_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_REMEMBERED = 50_000  # short texts whose ids are kept: questions and short answers come again
_SHORT = 300  # characters


class TokenizerError(ValueError):
    """A tokenizer folder cannot be used; the message names it and the remedy."""


class Tokenizer:
    """Text to ids and back; every special token of the grammar is a single id.

    Args:
      backend: the fast tokenizer; special tokens it lacks are added to it.
      bos: begin token.
      eos: end token.
      pad: padding token, or None to pad with id 0.
    """

    def __init__(self, backend: Backend, *, bos: str, eos: str, pad: str | None = None) -> None:
        backend.add_special_tokens([_special(token) for token in SPECIAL_TOKENS])
        # A tokenizer file may carry the settings of whoever saved it.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._remembered: dict[str, tuple[int, ...]] = {}
        self.bos_id, self.eos_id = self.id_of(bos), self.id_of(eos)
        self.pad_id = 0 if pad is None else self.id_of(pad)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added at either end."""
        ids = self._remembered.get(text)
        if ids is None:
            ids = tuple(self._backend.encode(text, add_special_tokens=False).ids)
            if len(text) <= _SHORT and len(self._remembered) < _REMEMBERED:
                self._remembered[text] = ids
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included; ids outside the vocabulary are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    @property
    def digest(self) -> str:
        """Hex digest that changes with anything that changes ids."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """Id of one token by its string; raises TokenizerError when there is none."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise TokenizerError(f"the tokenizer has no token {token!r}; use another one or add it")
        return found


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """The fast tokenizer in a local Hugging Face folder, or the bundled one for None.

    Raises:
      TokenizerError: no such folder, no fast tokenizer in it, or one without an end token.
    """
    if path is None:
        return _load_bundled(BUNDLED)
    folder = Path(path)
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder; name one with a Hugging Face tokenizer")
    # Imported here: it costs seconds, and the bundled tokenizer does not need it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"{folder}: no usable tokenizer ({reason})") from error
    if not loaded.is_fast:
        raise TokenizerError(f"{folder}: not a fast tokenizer; save it with a {_FILE}")
    if loaded.eos_token is None:
        raise TokenizerError(f"{folder}: names no end token; set eos_token in {_SETTINGS}")
    # A private copy, so that adding tokens leaves the caller's object alone.
    backend = Backend.from_str(loaded.backend_tokenizer.to_str())
    eos, pad = loaded.eos_token, loaded.pad_token or loaded.unk_token
    return Tokenizer(backend, bos=loaded.bos_token or eos, eos=eos, pad=pad)


def _load_bundled(folder: Path) -> Tokenizer:
    try:
        backend = Backend.from_file(str(folder / _FILE))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"{folder / _FILE}: cannot be read ({error}); install the package again"
        ) from error
    return Tokenizer(backend, bos=_BOS, eos=_EOS, pad=_PAD)


def train_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer, writes it as a Hugging Face folder and returns it.

    Frequent strings of the wire format are whole tokens, so that boilerplate costs one each. They
    are not special: free text that contains one is still free text. Merges stay inside a word, and
    digits stay alone, so that decoding gives back any text and coordinates share their tokens.

    Args:
      texts: free text; special tokens and wire-format strings in it are skipped.
      out: folder to write.
      vocab_size: most ids, all added tokens included; few distinct words need fewer.

    Raises:
      ValueError: `vocab_size` leaves no room for bytes and added tokens.
    """
    added = len(SPECIAL_TOKENS) + len(WIRE_PHRASES)
    learned = vocab_size - added
    if learned < 256 + len(_CONTROL):
        raise ValueError(
            f"vocab_size is {vocab_size}; bytes and added tokens alone need "
            f"{256 + len(_CONTROL) + added}"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        min_frequency=1,
        special_tokens=list(_CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_free_text(texts), trainer)
    backend.add_special_tokens([_special(token) for token in SPECIAL_TOKENS])
    backend.add_tokens([_wire(phrase) for phrase in WIRE_PHRASES])
    _write_folder(backend, Path(out))
    return _load_bundled(Path(out))


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _wire(phrase: str) -> AddedToken:
    # Words such as "box" must not be cut out of "boxes".
    return AddedToken(phrase, single_word=phrase in WIRE_WORDS, normalized=False)


def _free_text(texts: Iterable[str]) -> Iterator[str]:
    """What remains between wire-format strings: only that must be learned."""
    words = [rf"\b{re.escape(word)}\b" for word in WIRE_WORDS]
    fixed = {*WIRE_PHRASES, *SPECIAL_TOKENS} - set(WIRE_WORDS)
    longest_first = sorted(map(re.escape, fixed), key=len, reverse=True)
    wire = re.compile("|".join([*longest_first, *words]))
    for text in texts:
        yield from filter(None, wire.split(text))


def _write_folder(backend: Backend, out: Path) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BOS,
        "eos_token": _EOS,
        "pad_token": _PAD,
        "clean_up_tokenization_spaces": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in ((_FILE, backend.to_str()), (_SETTINGS, json.dumps(settings, indent=1))):
        temporary = out / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, out / name)


def world_texts(world: Path) -> Iterator[str]:
    """Every sentence of the training annotations of a shapes world, and every question template.

    Sentences come twice, once behind a blank: words at their start are also met inside a text.
    """
    from data_pipelines.templates import REGISTERS, banks, sentences

    for bank in banks():
        for register in REGISTERS:
            for template in sentences(bank, register):
                yield re.sub(r"\{\w+\}", "", template)
    for path in sorted(Path(world).rglob("*train*.json*")):
        lines = path.read_text(encoding="utf-8").splitlines()
        documents = lines if path.suffix == ".jsonl" else ["\n".join(lines)]
        for document in documents:
            for sentence in _sentences(json.loads(document)):
                yield from (sentence, f" {sentence}")


def _sentences(value: object) -> Iterator[str]:
    """Strings of an annotation file that people would read: words, not paths, keys or masks."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z ,.;:?!'()-]+", value):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "counts":  # run-length masks may look like words
                yield from _sentences(item)
    elif isinstance(value, list):
        for item in value:
            yield from _sentences(item)


def main() -> None:
    """Trains the bundled tokenizer on a shapes world."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--world", type=Path, required=True, help="folder of a rendered world")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--vocab-size", type=int, default=1000)
    args = parser.parse_args()
    tokenizer = train_tokenizer(world_texts(args.world), args.out, args.vocab_size)
    print(f"{args.out}: {tokenizer.vocab_size} tokens")


if __name__ == "__main__":
    main()
