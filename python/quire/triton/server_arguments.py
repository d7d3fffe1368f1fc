"""What arguments for tritonserver mean, as far as we must know: `--flag=value` and `--flag value`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def values_of(flag: str, arguments: Sequence[str]) -> list[str]:
    """Every value that `flag` is given, in order."""
    values = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name == flag:
            values.append(value if equals else following)
    return values


def value_of(flag: str, arguments: Sequence[str], default: str = "") -> str:
    """The last value of `flag`, which is the one that counts."""
    return [default, *values_of(flag, arguments)][-1]


def is_on(flag: str, arguments: Sequence[str]) -> bool:
    """What tritonserver makes of a boolean flag that is on by default."""
    return value_of(flag, arguments, "true").lower() in ("true", "1", "on")


def models_at_start(arguments: Sequence[str]) -> list[str] | None:
    """The models that are loaded at start, before the steps of ensembles among them; None: all."""
    if value_of("--model-control-mode", arguments, "none") != "explicit":
        return None
    names = values_of("--load-model", arguments)
    return None if "*" in names else names
