"""Each stub file names what its module has, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import _core_parts
import pytest
import quire
from quire import _core

STUBS = {
    # Beside the Python sources: an editable install keeps the compiled module elsewhere.
    _core: Path(quire.__file__).parent / "_core.pyi",
    _core_parts: Path(__file__).parents[2] / "core_parts" / "_core_parts.pyi",
}
each_module = pytest.mark.parametrize("module", STUBS, ids=lambda module: str(module.__name__))


def body_of(module: ModuleType) -> list[ast.stmt]:
    return ast.parse(STUBS[module].read_text()).body


def names(body: list[ast.stmt]) -> set[str]:
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return {name for name in found if not name.startswith("_")}


@each_module
def test_stub_names_the_module_s_names(module: ModuleType) -> None:
    """Classes, functions and constants of a stub are those of its module."""
    assert names(body_of(module)) == {name for name in vars(module) if not name.startswith("_")}


@each_module
def test_stub_names_each_class_s_members(module: ModuleType) -> None:
    """Members of each class in a stub are those of the class; an exception's belong to instances."""
    for node in body_of(module):
        if isinstance(node, ast.ClassDef) and not issubclass(getattr(module, node.name), Exception):
            members = vars(getattr(module, node.name))
            assert names(node.body) == {name for name in members if not name.startswith("_")}, node.name
