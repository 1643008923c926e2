"""The shape of the source: imports point down the pipeline, files stay short."""

import ast
import graphlib
from pathlib import Path

import pytest

import fcompress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fcompress"
# Modules and packages, from what stands on nothing to what the user calls: each imports only
# from those before it.
ORDER = """
    errors
    files archive safetensors_file
    models
    reshapes adapting
    architecture weights
    preprocess packing data
    resize foreign rebuild checkpoint
    train_config resume training
    scoring capture moments layers
    unionfind label_tensors labels label_moves label_mixes
    prepare tracing excise proof groups reach
    record rows targets
    ablation redundancy growth
    agreement cost
    fisher selection allocation effects curves
    refactor sequential
    methods
    polishing
    roles screening search
    seek outcome
    analysis pipeline
    portable exporting contents
    plots report
    experiments
    cli
""".split()
LONGEST = 500


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Full names of all that is imported, inside functions too, but not for annotations only."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            names |= imported(ast.Module(node.orelse, []))
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        names |= imported(node)
    return names


def home(name: str) -> str | None:
    """The module of the package that an imported name comes from; None for other packages."""
    parts = name.split(".")
    if parts[0] != "fcompress":
        return None
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:length])
    raise AssertionError(name)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports."""
    found = {}
    for path in files(PACKAGE):
        names = imported(ast.parse(path.read_text()))
        found[module(path)] = {m for m in map(home, names) if m is not None}
    return found


def test_every_module_has_its_place():
    there = {module(path).split(".")[1] for path in files(PACKAGE) if module(path) != "fcompress"}
    assert there == set(ORDER) and len(ORDER) == len(set(ORDER))


def test_imports_point_down():
    up = []
    for importer, names in imports().items():
        for name in names:
            if name == "fcompress":
                up.append(f"{importer} imports the package itself")
                continue
            above, below = importer.split(".")[1], name.split(".")[1]
            if above != below and ORDER.index(above) < ORDER.index(below):
                up.append(f"{importer} imports {name}")
    assert not up


def test_imports_inside_a_package_form_no_circle():
    graph = {
        # A package hands on what its modules define; what it imports is no circle.
        importer: {name for name in names if name.count(".") == 2}
        for importer, names in imports().items()
        if importer.count(".") == 2
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from fcompress.cost import count", {"fcompress.cost.count"}),
        ("def f():\n    import fcompress.cost", {"fcompress.cost"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b"}),
        ("import typing\nif typing.TYPE_CHECKING:\n    import a", {"typing"}),
    ],
)
def test_what_counts_as_an_import(source, names):
    assert imported(ast.parse(source)) == names


def test_torch_pruning_stays_in_one_file():
    users = [
        path.name
        for path in files(PACKAGE)
        if any(n.split(".")[0] == "torch_pruning" for n in imported(ast.parse(path.read_text())))
    ]
    assert len(users) <= 1


def test_no_file_hides_more_than_one_thing():
    lengths = {
        path.name: len(path.read_text().splitlines())
        for folder in (PACKAGE, ROOT / "tests", ROOT / "recipes", ROOT / "scripts")
        for path in files(folder)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_public_names_are_there():
    for name in fcompress.__all__:
        assert getattr(fcompress, name).__module__.startswith("fcompress.")
    assert set(fcompress._HOME) == set(fcompress.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for_annotations = next(node for node in tree.body if isinstance(node, ast.If))
    said = {
        alias.name: node.module
        for node in for_annotations.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert said == {name: f"fcompress.{place}" for name, place in fcompress._HOME.items()}


def test_recipes_and_scripts_use_the_public_names():
    inner = []
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    # Rivals are built out of the parts of ours, studies change them, two benchmarks time them.
    inside = ("rivals_", "study_", "effort", "stacked")
    scripts = [path for path in scripts if not path.name.startswith(inside)]
    for path in [*files(ROOT / "recipes"), *scripts]:
        text = path.read_text()
        if path.suffix == ".py" or "python" in text.partition("\n")[0]:
            inner += [
                f"{path.name}: {name}"
                for name in imported(ast.parse(text))
                if name.startswith("fcompress.") and name.split(".")[1] not in fcompress.__all__
            ]
    assert not inner
