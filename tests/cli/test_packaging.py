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
WHEEL = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_recipes_are_data_of_a_package():
    assert WHEEL["sources"] == {"recipes": "fcompress/experiments/recipes"}
    package, *patterns = WHEEL["include"]
    assert package == "/fcompress"
    packed = {path for pattern in patterns for path in ROOT.glob(pattern.removeprefix("/"))}
    recipes = ROOT / "recipes"
    assert packed == {*recipes.glob("*.toml"), recipes / "published_gains.json"}


def test_an_editable_installation_is_a_path():
    """Code that runs before the command can take an interrupt would show a traceback."""
    assert WHEEL["dev-mode-dirs"] == ["."]
    assert SETTINGS["build-system"]["build-backend"] == "hatchling.build"


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
