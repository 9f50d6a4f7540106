"""Values of records have the types that their classes say, and text that can be stored."""

from typing import Any

import pytest
from tiny_dialogs import dialog, grounding

from data_pipelines.records import Dialog, decode, encode, type_problem

WRONG: dict[str, list[Any]] = {
    "uid": [None, 3, "half a pair \ud800"],
    "schema_version": [True, 1.0, 1 << 63],
    "regions": [None, {}, [3]],
    "flags": ["eval_only", [1], [None]],
    "provenance": [None, {1: 2}, {"id": float("nan")}, {"id": [object()]}],
    "image.width": ["40", 40.0, True],
    "image.data": ["bytes"],
    "regions.box": [(1.0, 2.0, 3.0), (1.0, 2.0, 3.0, "4"), (1.0, 2.0, 3.0, True), 3.0],
    "regions.point": [(1.0, 2.0, 3.0), [None, 1.0]],
    "regions.is_crowd": [1, None],
    "regions.keypoints": [[1.0], [[1.0, None]]],
    "regions.mask.counts": ["text", None],
    "turns.slots": [{"a": 1}, {1: "a"}],
    "turns.spans.unit": [0, "box"],
    "turns.spans.targets": [[0.0], [True], 0],
}


def placed(path: str, value: object) -> Dialog:
    """A sound record with one value replaced in the first item of every list on the way."""
    made = dialog([grounding([("red cup", [0])])])
    *outer, name = path.split(".")
    node: Any = made
    for step in outer:
        node = getattr(node, step)
        node = node[0] if isinstance(node, list) else node
    setattr(node, name, value)
    return made


@pytest.mark.parametrize(("path", "value"), [(p, v) for p in WRONG for v in WRONG[p]])
def test_a_value_of_a_wrong_type_is_named(path: str, value: object) -> None:
    problem = type_problem(placed(path, value))
    assert problem is not None and f".{path.split('.')[-1]} is " in problem


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("uid", "Größe \N{CAT}"),
        ("image.data", None),
        ("image.data", b"\xff"),
        ("regions.box", None),
        ("regions.box", (1, 2, 3, 4)),
        ("regions.box", (float("nan"), 2.0, 3.0, 4.0)),  # a matter of the rules on regions
        ("regions.keypoints", []),
        ("provenance", {"id": -5, "parts": [{"x": None}, "y", b"z"]}),
    ],
)
def test_what_a_class_allows_is_stored_and_read_back(path: str, value: object) -> None:
    made = placed(path, value)
    assert type_problem(made) is None
    assert encode(decode(encode(made))) == encode(made)
