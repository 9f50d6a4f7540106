"""Native files with random damage: no converter ever raises, and every loss is counted."""

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rows import EVERYTHING, LISTED, PUBLISHED, SOURCES

from data_pipelines.records import decode, encode, type_problem
from data_pipelines.sources.base import Drops
from data_pipelines.validate import repair, validate

JUNK = st.sampled_from(
    [None, "", "x{y}", -1, 0, 10**12, 1.5, float("nan"), True, [], [None], [[]], {}, {"size": 3}]
)


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values below the top level."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def damaged(content: Any, place: tuple, junk: Any) -> Any:
    """A copy with one value replaced, or deleted when `junk` is the string "gone"."""
    copied = copy.deepcopy(content)
    node = copied
    for key in place[:-1]:
        node = node[key]
    if junk == "gone":
        del node[place[-1]]
    else:
        node[place[-1]] = junk
    return copied


def no_harm(name: str, data: st.DataObject) -> None:
    """Damages the content of a source in one place; converts it, stores and judges the result."""
    content, lines, convert = EVERYTHING[name]
    # The lists a file consists of are a matter of the whole file (see the other tests).
    choices = [p for p in places(content) if not (isinstance(content, dict) and len(p) == 1)]
    place = data.draw(st.sampled_from(choices))
    broken = damaged(content, place, data.draw(JUNK | st.just("gone")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "native.json"
        rows = "\n".join(map(json.dumps, broken)) if lines else json.dumps(broken)
        path.write_text(rows)
        drops = Drops()
        dialogs = list(convert(path, "train", "", drops))
    assert all("\n" not in line and "native.json" in line for line in drops.lines)
    for dialog in dialogs:
        # What survives can be judged, and stored and read back unless a value has a wrong type.
        found = validate(dialog)
        if type_problem(dialog):
            assert [finding.code for finding in found] == ["V01"]
        else:
            repair(decode(encode(dialog)))


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_record_never_stops_a_build(name: str, data: st.DataObject) -> None:
    no_harm(name, data)


@pytest.mark.parametrize("name", PUBLISHED | LISTED)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_record_of_a_published_file_never_stops_a_build(
    name: str, data: st.DataObject
) -> None:
    no_harm(name, data)


@pytest.mark.parametrize("name", EVERYTHING)
def test_undamaged_content_is_kept_whole(name: str, tmp_path: Path) -> None:
    content, lines, convert = EVERYTHING[name]
    path = tmp_path / "native.json"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
    drops = Drops()
    assert list(convert(path, "train", "", drops)) and not drops.lines
