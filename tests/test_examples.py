"""The examples in docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import fcompress

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(fcompress.__path__, "fcompress.")
    if not name.endswith("__main__")
]
FUNCTIONS = sorted(
    name for name in fcompress.__all__ if inspect.isfunction(getattr(fcompress, name))
)


def examples_of(module):
    """Docstrings with examples of what a module itself defines."""
    finder = doctest.DocTestFinder()
    found = finder.find(module, module.__name__)
    for name, value in vars(module).items():  # the finder does not look behind decorators
        inner = inspect.unwrap(value) if inspect.isfunction(value) else value
        if inner is not value and inner.__module__ == module.__name__:
            found += finder.find(inner, f"{module.__name__}.{name}", module)
    return [test for test in found if test.examples]


def test_examples_behind_decorators_are_found():
    module = importlib.import_module("fcompress.compress.pipeline")
    assert "fcompress.compress.pipeline.shrink" in {test.name for test in examples_of(module)}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples_of(module):
        with torch.random.fork_rng(devices=[]):
            said = []
            runner.run(test, out=said.append)
        assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_have_an_example(name):
    doc = inspect.getdoc(getattr(fcompress, name)) or ""
    assert ">>>" in doc, name
    signature = inspect.signature(getattr(fcompress, name))
    assert "Args:" in doc or not signature.parameters
    assert "Returns:" in doc or signature.return_annotation in (None, "None")
