"""The stub file names what the module has, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import quire
from quire import _core

# Beside the Python sources: an editable install keeps the compiled module elsewhere.
STUB = ast.parse((Path(quire.__file__).parent / "_core.pyi").read_text())


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


def test_stub_names_the_module_s_names() -> None:
    """Classes, functions and constants of _core.pyi are those of the module."""
    assert names(STUB.body) == {name for name in vars(_core) if not name.startswith("_")}


def test_stub_names_each_class_s_members() -> None:
    """Members of each class in _core.pyi are those of the class; an exception's belong to instances."""
    for node in STUB.body:
        if isinstance(node, ast.ClassDef) and not issubclass(getattr(_core, node.name), Exception):
            members = vars(getattr(_core, node.name))
            assert names(node.body) == {name for name in members if not name.startswith("_")}, node.name
