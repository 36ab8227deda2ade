"""The registry of models: complete, in order, and every name in it is something that is there."""

import ast
from pathlib import Path
from pkgutil import resolve_name

import pytest

from hpc_hipgen import ROOT
from hpc_hipgen.config import GENERATORS, NEEDS, TRAINED
from hpc_hipgen.models import MODELS


def test_every_model_that_is_trained_is_known_in_that_order():
    assert tuple(MODELS) == TRAINED


def test_a_model_needs_only_what_is_trained_before_it():
    assert set(NEEDS) <= set(TRAINED)
    for number, name in enumerate(TRAINED):
        assert set(NEEDS.get(name, ())) <= set(TRAINED[:number])


@pytest.mark.parametrize("name", MODELS)
def test_the_functions_of_a_model_are_there(name):
    model = MODELS[name]
    for function in filter(None, (model.task, model.drawer)):
        assert callable(resolve_name(function))


def test_generators_draw_rows_that_have_names():
    assert tuple(name for name, model in MODELS.items() if model.drawer) == GENERATORS
    assert all(MODELS[name].label for name in GENERATORS)
    assert not any(MODELS[name].ruler or MODELS[name].scored for name in GENERATORS)


def test_the_library_imports_no_command():
    for path in Path(ROOT, "hpc_hipgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "jobs" for name in names), path
