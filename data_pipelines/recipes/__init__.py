"""What a dataset is made of: recipes, from code or from a TOML file.

A recipe file names native files relative to a root folder; `{split}` stands for the split:

    about = "one line"
    splits = ["train", "val"]
    pictures = "{split}2017"
    instances = "annotations/instances_{split}2017.json"

    [[entries]]
    family = "coco_instances"
    file = "annotations/instances_{split}2017.json"

`pictures` is a folder under the root, or a table of folders by split. An entry may have `pictures`,
`instances` and `split` of its own, `tasks` to keep only some of what its converter yields, `options`
of the converter, and `files`: options that are paths under the root.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.tasks import TASKS

BUNDLED = Path(__file__).parent
_TOP = {"about", "splits", "pictures", "instances", "entries"}
_ENTRY = {"family", "file", "pictures", "instances", "split", "tasks", "options", "files"}


class RecipeError(ValueError):
    """A recipe file is missing or malformed; the message names file, field and remedy."""


@dataclass(frozen=True)
class SourceEntry:
    """One native file and how to read it."""

    family: str
    """Key of `data_pipelines.families.FAMILIES`."""
    file: str
    options: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    """Folder of its pictures under the image root; None takes the recipe's."""
    instances: str | None = None
    """COCO instances file for its sizes and names; None takes the recipe's."""
    split: str | None = None
    """Split as its converter knows it; None takes the recipe's."""
    tasks: tuple[str, ...] | None = None
    """Task ids that are kept of what its converter yields; None keeps all."""


@dataclass(frozen=True)
class BuildRecipe:
    """What a dataset is made of."""

    split: str
    image_root: str
    folder: str
    """Folder of the pictures under the image root."""
    instances: str
    """COCO instances file: sizes and category names for sources without their own; may be empty."""
    entries: tuple[SourceEntry, ...]
    against: tuple[str, ...] = ()
    """Built evaluation datasets: training records about their pictures are dropped (V24)."""

    @property
    def hash(self) -> str:
        """Digest of everything that decides the result but the files' contents."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def bundled() -> dict[str, str]:
    """Name -> description of the recipes that come with the package."""
    return {path.stem: str(_read(path).get("about", "")) for path in sorted(BUNDLED.glob("*.toml"))}


def load_recipe(
    name: str, root: Path | None, split: str, *, against: tuple[str, ...] = ()
) -> BuildRecipe:
    """A bundled recipe by name, or any recipe by the path of its file.

    Args:
      name: see `bundled`, or `path/to/recipe.toml`.
      root: folder of the native files; None takes the folder of the recipe's file.
      split: one of the recipe's splits.
      against: see `BuildRecipe.against`.

    Raises:
      RecipeError: unknown name or split, or a malformed file.
    """
    own = name.endswith(".toml")
    path = Path(name) if own else BUNDLED / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(
            f"recipe {name!r} not found; give the path of a .toml file or one of "
            f"{', '.join(bundled())}"
        )
    if root is None and not own:
        raise RecipeError(f"recipe {name!r}: give the folder of the native files with --root")
    content = _read(path)
    _known(content, _TOP, {"entries"}, f"{path}")
    if split not in (splits := content.get("splits", [split])):
        raise RecipeError(f"{path}: no split {split!r}; it has {', '.join(splits)}")
    base = Path(root if root is not None else path.parent).resolve()
    filled = _filled(content, split)
    return BuildRecipe(
        split=split,
        image_root=str(base),
        folder=_folder(filled.get("pictures", ""), split, f"{path}"),
        instances=_under(base, filled.get("instances", "")),
        entries=tuple(
            _entry(entry, base, split, f"{path}: entry {number}")
            for number, entry in enumerate(filled["entries"], 1)
        ),
        against=against,
    )


def _entry(content: dict[str, Any], base: Path, split: str, where: str) -> SourceEntry:
    _known(content, _ENTRY, {"family", "file"}, where)
    options = dict(content.get("options", {}))
    options |= {name: _under(base, file) for name, file in content.get("files", {}).items()}
    instances, pictures = content.get("instances"), content.get("pictures")
    tasks = content.get("tasks")
    if unknown := sorted(set(tasks or ()) - set(TASKS)):
        raise RecipeError(f"{where}: unknown task {unknown[0]!r}; known: {', '.join(TASKS)}")
    return SourceEntry(
        family=content["family"],
        file=_under(base, content["file"]),
        options=options,
        folder=None if pictures is None else _folder(pictures, split, where),
        instances=None if instances is None else _under(base, instances),
        split=content.get("split"),
        tasks=None if tasks is None else tuple(tasks),
    )


def _folder(pictures: Any, split: str, where: str) -> str:
    found = pictures.get(split) if isinstance(pictures, dict) else pictures
    if not isinstance(found, str):
        raise RecipeError(f"{where}: pictures names no folder of split {split!r}; add it")
    return found


def _under(base: Path, file: str) -> str:
    return str(base / file) if file else ""


def _filled(value: Any, split: str) -> Any:
    """The content with `{split}` replaced in every string."""
    if isinstance(value, str):
        return value.replace("{split}", split)
    if isinstance(value, list):
        return [_filled(item, split) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, split) for key, item in value.items()}
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not a recipe ({error}); correct the file") from None


def _known(content: Mapping[str, Any], allowed: set[str], needed: set[str], where: str) -> None:
    if not isinstance(content, Mapping):
        raise RecipeError(f"{where}: {content!r:.60} is no table; write [[entries]] tables")
    if unknown := sorted(set(content) - allowed):
        raise RecipeError(f"{where}: unknown field {unknown[0]!r}; known: {sorted(allowed)}")
    if missing := sorted(needed - set(content)):
        raise RecipeError(f"{where}: field {missing[0]!r} is missing; add it")
    for name in set(content) & {"family", "file", "instances", "split", "about"}:
        if not isinstance(content[name], str):
            raise RecipeError(f"{where}: {name} = {content[name]!r} is no string; quote it")
    for name in set(content) & {"options", "files"}:
        if not isinstance(content[name], dict):
            raise RecipeError(f"{where}: {name} = {content[name]!r} is no table; write {{...}}")
    for name in set(content) & {"entries", "splits", "tasks"}:
        if not isinstance(content[name], list):
            raise RecipeError(f"{where}: {name} is no list; correct the file")
