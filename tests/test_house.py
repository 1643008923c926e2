"""The shape of the source: imports point down the pipeline, files stay short, names are found."""

import ast
import graphlib
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fcompress

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fcompress"
# From what stands on nothing to what the user calls: each imports only from those before it.
ORDER = """
    errors arguments showing nn formats models data forward cascades surgery certify structure
    checkpoints programs measure compress training exports latency comparison report
    experiments cli
""".split()
# What else a package must not import though it stands below, as its docstring says.
NEVER = {
    "formats": "nn",
    "cascades": "data",
    "surgery": "data",
    "certify": "surgery",
    "structure": "data",
    "checkpoints": "certify",
    "programs": "data",
    "measure": "certify checkpoints",
    "compress": "measure checkpoints formats",
    "training": "compress measure certify",
    "exports": "compress measure",
    "latency": "compress measure training",
    "comparison": "measure training",
    "report": "structure surgery",
}
LONGEST = 500
MOST_FILES = 14


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


def offers(package: Path) -> dict[str, str]:
    """Name -> the file of the package that it comes from, as the stub beside `__init__` says."""
    stub = package / "__init__.pyi"
    tree = ast.parse(stub.read_text() if stub.is_file() else "")
    return {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def home(name: str) -> str | None:
    """The file of the package that an imported name comes from; None for other packages."""
    parts = name.split(".")
    if parts[0] != "fcompress":
        return None
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return ".".join(parts[:length])
        if (path / "__init__.py").is_file():
            offered = offers(path).get(parts[length]) if length < len(parts) else None
            return ".".join([*parts[:length], *([offered] if offered else [])])
    raise AssertionError(name)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """File -> files of the package that it imports."""
    found = {}
    for path in files(PACKAGE):
        names = imported(ast.parse(path.read_text()))
        found[module(path)] = {m for m in map(home, names) if m is not None}
    return found


def packages() -> list[Path]:
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def test_every_package_has_its_place():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert there - {"__init__", "__main__", "__pycache__", "assets"} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_imports_point_down():
    up = []
    for importer, names in imports().items():
        if importer in ("fcompress", "fcompress.__main__"):
            continue
        above = importer.split(".")[1]
        for name in names:
            if name == "fcompress":
                up.append(f"{importer} imports the package itself")
                continue
            below = name.split(".")[1]
            if above != below and (
                ORDER.index(above) < ORDER.index(below) or below in NEVER.get(above, "").split()
            ):
                up.append(f"{importer} imports {name}")
    assert not up


def test_imports_of_files_form_no_circle():
    assert list(graphlib.TopologicalSorter(imports()).static_order())


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
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("fcompress", "tests", "recipes", "benchmarks", "scripts")
        for path in files(ROOT / folder)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_package_is_a_heap():
    count = {
        module(folder / "__init__.py"): len([*folder.glob("*.py")]) - 1 for folder in packages()
    }
    assert {name: number for name, number in count.items() if number > MOST_FILES} == {}


@pytest.mark.parametrize("folder", packages(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_say_what_they_are_and_offer_what_is_there(folder):
    name = module(folder / "__init__.py")
    package = importlib.import_module(name)
    assert package.__doc__
    if name.count(".") == 1 and name != "fcompress.cli":
        assert "Must never import" in package.__doc__
    named = offers(folder)
    for offered in named:
        assert getattr(package, offered) is not None
        assert offered in dir(package)
    # The import of a file puts it into the package under its name, in place of such a function.
    assert not set(named) & {path.stem for path in folder.iterdir()}


def test_tests_mirror_the_packages():
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {"__pycache__"}
    assert folders <= {*ORDER, "benchmarks", "cases"}
    tested = {p.name for p in (ROOT / "tests").glob("*.py")}
    assert tested == {"conftest.py", "test_house.py", "test_examples.py"}


def test_the_public_names_are_there():
    for name, place in offers(PACKAGE).items():
        thing = getattr(fcompress, name)
        assert thing.__module__ == f"fcompress.{place}"
    assert sorted(fcompress.__all__) == sorted([*offers(PACKAGE), "__version__"])
    errors = importlib.import_module("fcompress.errors")
    public = {
        n
        for n, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert public <= set(fcompress.__all__)


def test_names_are_listed_before_anything_is_imported():
    code = (
        "import sys, fcompress; assert 'shrink' in dir(fcompress); "
        "assert fcompress.__version__ in dir(fcompress) or fcompress.__version__; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_file_imports_where_locks_of_unix_do_not_exist():
    """Windows has no `fcntl`."""
    names = [m.name for m in pkgutil.walk_packages(fcompress.__path__, "fcompress.")]
    code = (
        "import sys, importlib; sys.modules['fcntl'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)"
    )
    names = [name for name in names if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_recipes_and_benchmarks_use_the_public_names():
    inner = []
    # Rivals are built out of the parts of ours, or get them, too; studies change them, two
    # benchmarks time them.
    inside = {"rivals", "shipped", "studies", "effort", "stacked"}
    for path in [*files(ROOT / "recipes"), *files(ROOT / "benchmarks")]:
        if inside & {path.stem, path.parent.name}:
            continue
        inner += [
            f"{path.name}: {name}"
            for name in imported(ast.parse(path.read_text()))
            if name.startswith("fcompress.") and name.split(".")[1] not in fcompress.__all__
        ]
    assert not inner
