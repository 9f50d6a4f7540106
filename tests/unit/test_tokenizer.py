import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_dialogs import tokenizer

from data_pipelines.tokenizer import TokenizerError, load_tokenizer, train_tokenizer
from refvlm_jax.trp.commands import COMMANDS
from refvlm_jax.trp.prompt import WIRE_PHRASES, turn_prompt
from refvlm_jax.trp.render import render_answer
from refvlm_jax.trp.spans import TextSpan
from refvlm_jax.trp.tokens import SPECIAL_TOKENS, Unit

PIECES = [
    *SPECIAL_TOKENS,
    *WIRE_PHRASES,
    "boxes",
    " ",
    "\n",
    "0.305",
    "é",
    "🐕",
    "<s>",
    "<Phr",
    "  ",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["trained", "bundled"])
def any_tokenizer(request, trained):
    return trained if request.param == "trained" else load_tokenizer()


@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_decoding_gives_the_text_back(any_tokenizer, text):
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


def test_special_tokens_are_single_ids(any_tokenizer):
    for token in SPECIAL_TOKENS:
        assert any_tokenizer.encode(f"a{token}b").count(any_tokenizer.id_of(token)) == 1
        assert any_tokenizer.encode(token) == [any_tokenizer.id_of(token)]
    named = [any_tokenizer.bos_id, any_tokenizer.eos_id, any_tokenizer.pad_id]
    assert len(set(named)) == 3 and any_tokenizer.vocab_size > max(named)


def test_nothing_is_added_at_the_ends(any_tokenizer):
    ids = any_tokenizer.encode("a dog")
    assert any_tokenizer.bos_id not in ids and any_tokenizer.eos_id not in ids
    assert any_tokenizer.encode("") == []


def test_ids_that_were_changed_by_a_caller_come_back_unchanged(any_tokenizer):
    ids = any_tokenizer.encode("a red dog")
    expected = list(ids)
    ids.append(0)
    assert any_tokenizer.encode("a red dog") == expected


def test_only_a_bounded_number_of_short_texts_is_remembered(any_tokenizer, monkeypatch):
    monkeypatch.setattr("data_pipelines.tokenizer._REMEMBERED", 3)
    monkeypatch.setattr(any_tokenizer, "_remembered", {})
    texts = ["a", "b", "c", "d", "long " * 100]
    fresh = [any_tokenizer.encode(text) for text in texts]
    assert [any_tokenizer.encode(text) for text in texts] == fresh
    assert set(any_tokenizer._remembered) == {"a", "b", "c"}


def test_every_wire_phrase_is_one_id(any_tokenizer):
    for phrase in WIRE_PHRASES:
        assert len(any_tokenizer.encode(phrase)) == 1, phrase


def test_boilerplate_is_cheap(any_tokenizer):
    for name in COMMANDS:
        prompt = turn_prompt(name, "?", first=False, image=False)
        assert len(any_tokenizer.encode(prompt)) <= 9, any_tokenizer.encode(prompt)
    answer = render_answer("x", [TextSpan(0, 1, Unit.BOX, 1)]).text
    assert len(any_tokenizer.encode(answer)) == 18


def test_unit_words_do_not_cut_other_words(trained):
    assert trained.id_of("box") not in trained.encode("boxes and inbox")
    assert trained.id_of("box") in trained.encode("<Unit>box</Unit>")


def test_words_are_learned_but_never_joined(trained):
    assert len(trained.encode(" cup")) == 1
    joined = [t for t in trained._backend.get_vocab(with_added_tokens=False) if "Ġ" in t[1:]]
    assert joined == []


def test_digits_stay_alone(trained):
    assert len(trained.encode("0.305")) == 5


def test_training_is_deterministic(tmp_path):
    for name in ("a", "b"):
        tokenizer(tmp_path / name)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_small_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 260"):
        train_tokenizer(["a"], tmp_path, 260)


def test_the_trained_folder_is_a_hugging_face_tokenizer(trained, tmp_path):
    tokenizer(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "<Phrase>red cup</Phrase>(<Unit>box</Unit>[0]<REF>)"
    assert loaded.encode(text) == trained.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (
        trained.bos_id,
        trained.eos_id,
        trained.pad_id,
    )


def save_foreign(folder, **settings):
    """A word-level Hugging Face tokenizer that knows nothing of the grammar."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<unk>": 0, "[B]": 1, "[E]": 2, "dog": 3, "(": 4, ")": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[B] $A [E]", special_tokens=[("[B]", 1), ("[E]", 2)]
    )
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def test_any_local_fast_tokenizer_gets_the_special_tokens(tmp_path):
    save_foreign(tmp_path, bos_token="[B]", eos_token="[E]")
    loaded = load_tokenizer(tmp_path)
    ids = loaded.encode("<Phrase>dog</Phrase>(<REF>)")
    names = ["<Phrase>", "dog", "</Phrase>", "(", "<REF>", ")"]
    assert ids == [loaded.id_of(name) for name in names]
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (1, 2, 0)
    assert loaded.vocab_size == 6 + len(SPECIAL_TOKENS)


def test_without_begin_token_the_end_token_begins(tmp_path):
    save_foreign(tmp_path, eos_token="[E]")
    loaded = load_tokenizer(tmp_path)
    assert loaded.bos_id == loaded.eos_id == 2


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
    save_foreign(tmp_path)
    with pytest.raises(TokenizerError, match="no end token"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_can_be_sent_to_workers(trained):
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.encode("red cup<REF>") == trained.encode("red cup<REF>")


def test_unknown_token_is_named(trained):
    with pytest.raises(TokenizerError, match="'<none>'"):
        trained.id_of("<none>")
