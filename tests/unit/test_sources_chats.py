"""LLaVA's conversations, Osprey and LLaVA-Grounding as published."""

from pathlib import Path
from typing import Any

import pytest
from native_files import FAR, IMAGE, SIZES, SQUARE, annotation, packed, phrases, sound, write

from data_pipelines.records import PromptKind
from data_pipelines.sources import llava, region_chats
from data_pipelines.sources.base import Drops, SourceError


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": t} for k, t in enumerate(texts)]


def test_llava_rows_keep_their_words(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": "1", "image": "a.jpg", "conversations": talk("<image>\nWho  is it?", "A dog.",
                                                             "Why?\nSay more.", "It barks.")},
        {"id": "1", "conversations": talk("Name a colour.", "Red.")},
        {"id": "2", "image": "a.jpg", "conversations": talk("Where? <image>", "[0.1, 0.20, 0.3, 0.9]")},
        {"id": "3", "image": "gone.jpg", "conversations": talk("Who?", "A cat.")},
        {"id": "4", "image": "a.jpg", "conversations": talk("Who?", "A cat.")[::-1]},
        {"id": "5", "image": "a.jpg", "conversations": talk("<image>", "A cat.")},
    ]  # fmt: skip
    drops = Drops()
    path = write(tmp_path / "llava_v1_5_mix665k.json", rows)
    seen, text = sound(list(llava.mix(path, "train", "pics", drops, SIZES)))
    assert seen.uid == "llava_mix/train/0/T05" and len(seen.turns) == 2
    assert [t.literal for t in seen.turns] == ["Who is it?", "Why?\nSay more."]
    assert text.image is None and text.turns[0].answer == "Red."
    assert dict(drops.counts) == {"coordinates": 1, "V02": 1, "V01": 1, "V03": 1}
    assert len(list(llava.mix(path, "train", "", Drops(), SIZES, coordinates=True))) == 3


def test_llava_caption_files(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"id": "1", "image": "a.jpg", "conversations": talk("Sum it up.\n<image>", "a red kite")},
        {"id": "2", "conversations": talk("Sum it up.", "a red kite")},
    ]
    drops = Drops()
    path = write(tmp_path / "chat.json", rows)
    (dialog,) = sound(list(llava.captions(path, "train", "", drops, SIZES)))
    assert dialog.task_id == "T01" and dialog.turns[0].literal == "Sum it up."
    assert drops.counts["V02"] == 1
    with pytest.raises(SourceError, match="no list"):
        list(llava.captions(write(path, {}), "train", "", Drops(), SIZES))


OSPREY = {
    "file_name": "a.jpg", "height": 50, "width": 60,
    "annotation": [{"segmentation": SQUARE}, {"segmentation": packed(FAR)}],
}  # fmt: skip


def osprey(tmp_path: Path, kind: str, **item: Any) -> tuple[Any, Drops]:
    drops = Drops()
    path = write(tmp_path / "osprey.json", [OSPREY | item])
    return sound(list(region_chats.osprey(path, "train", "", drops, kind=kind))), drops


def test_osprey_conversations_introduce_their_regions(tmp_path: Path) -> None:
    said = talk("What is <region2>?", "<region2> is a wall.", "And <region1>?", "A dog.")
    (dialog,), _ = osprey(tmp_path, "conversation", conversations=said)
    assert dialog.uid == "osprey/train/conversation-osprey-0/T12"
    first, second = dialog.turns
    assert first.literal == (
        "Marked in the picture: region1 [VPT], region2 [VPT].\nWhat is region2?"
    )
    assert [(p.region, p.kind) for p in first.prompts] == [
        (0, PromptKind.MASK), (1, PromptKind.MASK),
    ]  # fmt: skip
    assert first.answer == "region2 is a wall." and not second.prompts
    (short,), _ = osprey(tmp_path, "short", conversations=said)
    assert short.turns[1].literal == "And region1? Answer with a word or a short phrase."


def test_osprey_positive_and_negative_classes(tmp_path: Path) -> None:
    said = talk("Is <region2> a dog?", "No.", "Is <region1> a dog?", "Yes.")
    (dialog,), _ = osprey(tmp_path, "lvis", conversations=said)
    assert [t.literal for t in dialog.turns] == ["Is [VPT] a dog?"] * 2
    assert [t.prompts[0].region for t in dialog.turns] == [1, 0]
    none, drops = osprey(tmp_path, "lvis", conversations=talk("Is <region12> a dog?", "No."))
    assert not none and dict(drops.counts) == {"V13": 1}


def test_osprey_descriptions_one_region_a_turn(tmp_path: Path) -> None:
    (dialog,), _ = osprey(
        tmp_path, "detail", description=["<region1>: A dog: brown.", "<region2>: A wall."]
    )
    assert [(t.answer, t.prompts[0].region) for t in dialog.turns] == [
        ("A dog: brown.", 0), ("A wall.", 1),
    ]  # fmt: skip
    none, drops = osprey(tmp_path, "detail", description=["<region1>: A dog."])
    assert not none and dict(drops.counts) == {"V10": 1}
    with pytest.raises(SourceError, match="unknown kind 'part'"):
        osprey(tmp_path, "part")


def grounding(tmp_path: Path, row: dict[str, Any], **options: Any) -> tuple[Any, Drops]:
    content = {
        "images": [IMAGE],
        "annotations": [annotation(1), annotation(2, segmentation=FAR, bbox=[40, 20, 10, 20])],
    }
    instances = str(write(tmp_path / "instances.json", content))
    drops = Drops()
    path = write(tmp_path / "chat.json", [row])
    convert = region_chats.llava_grounding
    return sound(list(convert(path, "train", "pics", drops, instances=instances, **options))), drops


CHAT = {
    "id": "000000000007", "gd_ls": [[2], None, [1, 2]],
    "conversations": talk(
        "<image>\nWhat is there? (with grounding)",
        "<g_s> A wall <g_e> <seg> and <g_s>air<g_e><seg>.",
        "More?", "<g_s> Both things <g_e> <seg>."),
}  # fmt: skip


def test_grounded_chats_become_phrases(tmp_path: Path) -> None:
    (dialog,), _ = grounding(tmp_path, CHAT)
    assert dialog.uid == "llava_grounding/train/0/T20" and dialog.provenance["image_id"] == 7
    assert [t.literal for t in dialog.turns] == ["What is there?", "More?"]
    assert dialog.turns[0].answer == "A wall and air."
    assert phrases(dialog) == [("A wall", [0])] and phrases(dialog, 1) == [("Both things", [1, 0])]
    for bad, code in (({"gd_ls": [[2]]}, "V10"), ({"gd_ls": [[2], None, [9]]}, "V10"),
                      ({"id": "8"}, "V02")):  # fmt: skip
        none, drops = grounding(tmp_path, CHAT | bad)
        assert not none and dict(drops.counts) == {code: 1}


def test_chats_about_shown_objects(tmp_path: Path) -> None:
    row = {
        "id": "7", "q_gd_ls": [[2], None],
        "conversations": talk("What is <obj>?", "A wall.", "Why?", "To lean on."),
    }  # fmt: skip
    (dialog,), _ = grounding(tmp_path, row, prompts=True)
    assert dialog.uid == "llava_grounding/train/0/T12"
    assert dialog.turns[0].literal == "What is [VPT]?" and len(dialog.turns[0].prompts) == 1
    assert dialog.regions[0].box == (40, 20, 50, 40) and not dialog.turns[1].prompts
    none, drops = grounding(tmp_path, row | {"q_gd_ls": [[1, 2], None]}, prompts=True)
    assert not none and dict(drops.counts) == {"V13": 1}
