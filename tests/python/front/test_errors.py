"""The exception tree."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest
from quire import errors


def tree() -> dict[str, str]:
    """Class -> parent as the module's docstring draws it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ]*)(?:[├└]── )?([A-Z]\w+)(?:\s|$)", line):
            depth = (match.start(2)) // 4
            if depth == 0 and match.group(2) != "QuireError":
                continue
            path = [*path[:depth], match.group(2)]
            if depth:
                parents[match.group(2)] = path[-2]
    return parents


def test_the_docstring_is_the_map() -> None:
    """The tree in the docstring is the tree of the classes."""
    classes = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and issubclass(cls, errors.QuireError)
    }
    assert tree() == {
        name: cls.__bases__[0].__name__ for name, cls in classes.items() if name != "QuireError"
    }


def test_errors_survive_pickling() -> None:
    """Errors cross process borders with their fields."""
    error = pickle.loads(pickle.dumps(errors.InvalidArgument("top_p", "2", "a number in (0, 1]")))
    assert (error.field, error.given, error.allowed) == ("top_p", "2", "a number in (0, 1]")
    assert str(error) == "top_p: got 2; allowed: a number in (0, 1]"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        ("a\nb", '"a\\nb"'),
        ("é", '"é"'),
        ([1, "a", None], '[1, "a", null]'),
        ({"a": [True]}, '{"a": [true]}'),
        (b"x", "b'x' (bytes)"),
    ],
)
def test_values_are_described_as_json(value: object, expected: str) -> None:
    """Error texts speak JSON, the language of requests and settings."""
    assert expected == errors.describe(value)


def test_long_values_are_cut() -> None:
    """A message does not grow with what a client sends."""
    assert len(errors.describe("x" * 10_000)) < 120
    assert len(errors.describe([10**5000])) < 120
