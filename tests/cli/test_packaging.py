"""What is installed: every package, the recipes, and nothing that only the repository needs."""

import sys
from pathlib import Path

import pytest

from fcompress.errors import FcompressError
from fcompress.experiments import recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = SETTINGS["tool"]["setuptools"]
RECIPES = "fcompress.experiments.recipes"


def test_every_package_is_listed():
    folders = {path.parent for path in (ROOT / "fcompress").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(SETUPTOOLS["packages"]) == SETUPTOOLS["packages"]
    assert set(SETUPTOOLS["packages"]) == names | {RECIPES}


def test_recipes_are_data_of_a_package():
    folder = ROOT / SETUPTOOLS["package-dir"][RECIPES]
    packed = {path for glob in SETUPTOOLS["package-data"][RECIPES] for path in folder.glob(glob)}
    assert packed == {*folder.glob("*.toml"), folder / "published_gains.json"}
    # Python files of a package are always packed.
    assert not [*folder.glob("*.py")]


def test_recipes_are_found_beside_the_package_or_in_it(tmp_path, monkeypatch):
    assert recipe.folder() == ROOT / "recipes"
    package = tmp_path / "site" / "fcompress"
    package.mkdir(parents=True)
    monkeypatch.setattr(recipe.resources, "files", lambda name: package)
    with pytest.raises(FcompressError, match="name a recipe file of your own"):
        recipe.folder()
    inside = package / "experiments" / "recipes"
    inside.mkdir(parents=True)
    (inside / "own.toml").touch()
    assert recipe.folder() == inside
    assert list(recipe.known()) == ["own"]


def test_an_installation_asks_for_what_it_imports_only():
    asked = " ".join(SETTINGS["project"]["dependencies"])
    for name in ("ray", "mypy", "hypothesis", "pytest", "ruff", "timm", "onnx"):
        assert name not in asked.replace("torch-pruning", "")


def test_the_version_is_the_same_everywhere():
    version = SETTINGS["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
