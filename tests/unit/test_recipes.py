"""Recipe files: the bundled ones fit their converters, malformed ones are refused by name."""

import inspect
from pathlib import Path

import pytest

from data_pipelines.families import FAMILIES, converter_of
from data_pipelines.recipes import BUNDLED, RecipeError, bundled, load_recipe
from data_pipelines.sources.base import SourceError

GIVEN = {"path", "split", "folder", "drops", "sizes", "categories"}


def splits_of(name: str) -> list[str]:
    import tomllib

    return tomllib.loads((BUNDLED / f"{name}.toml").read_text()).get("splits", ["train"])


@pytest.mark.parametrize("name", bundled())
def test_bundled_recipes_fit_their_converters(name: str) -> None:
    assert bundled()[name]
    for split in splits_of(name):
        recipe = load_recipe(name, Path("/root"), split)
        assert recipe.entries and recipe.image_root == "/root"
        for entry in recipe.entries:
            assert entry.file.startswith("/root")
            filled = [entry.file, recipe.folder, recipe.instances, *entry.options.values()]
            assert not any("{" in str(value) for value in filled)
            known = set(inspect.signature(FAMILIES[entry.family]).parameters)
            assert set(entry.options) <= known - GIVEN


def test_every_family_has_a_recipe() -> None:
    used = {
        entry.family
        for name in bundled()
        for entry in load_recipe(name, Path("/root"), splits_of(name)[0]).entries
    }
    assert used == set(FAMILIES)


def test_a_recipe_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'pictures = {a = "x", b = "y"}\ninstances = "{split}.json"\n'
        '[[entries]]\nfamily = "lvis"\nfile = "{split}/f.json"\npictures = "other"\nsplit = "val"\n'
        'instances = ""\noptions = {n = 1}\nfiles = {names = "n_{split}.txt"}\n'
        '[[entries]]\nfamily = "lvis"\nfile = "g.json"\n'
    )
    recipe = load_recipe(str(path), None, "b")
    root = str(tmp_path.resolve())
    assert (recipe.image_root, recipe.folder) == (root, "y")
    assert recipe.instances == f"{root}/b.json"
    first, second = recipe.entries
    assert first.file == f"{root}/b/f.json" and first.folder == "other" and first.split == "val"
    assert first.options == {"n": 1, "names": f"{root}/n_b.txt"} and first.instances == ""
    assert (second.folder, second.instances, second.split) == (None, None, None)
    with pytest.raises(RecipeError, match="pictures names no folder of split 'c'"):
        load_recipe(str(path), None, "c")


@pytest.mark.parametrize(
    "text, message",
    [
        ("=", "not a recipe"),
        ("", "field 'entries' is missing"),
        ("entries = 3", "entries is no list"),
        ("entries = [3]", "entry 1: 3 is no table"),
        ("imges = 1\nentries = []", "unknown field 'imges'"),
        ('[[entries]]\nfamily = "lvis"', "entry 1: field 'file' is missing"),
        ('[[entries]]\nfamily = "lvis"\nfile = 3', "file = 3 is no string"),
        ('[[entries]]\nfamily = "lvis"\nfile = "a"\noptions = 3', "options = 3 is no table"),
        ('splits = ["val"]\nentries = []', "no split 'train'; it has val"),
    ],
)
def test_malformed_recipes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=rf"r\.toml.*{message}"):
        load_recipe(str(tmp_path / "r.toml"), None, "train")


def test_unknown_names_and_missing_roots() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'coc' not found; .*coco"):
        load_recipe("coc", Path("."), "train")
    with pytest.raises(RecipeError, match=r"with --root"):
        load_recipe("coco", None, "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    from data_pipelines.sources.base import Drops

    recipe = load_recipe("clevr", tmp_path, "val")
    with pytest.raises(SourceError, match=r"CLEVR_val_questions\.json: not found"):
        next(converter_of(recipe.entries[0], recipe)(Drops()))
