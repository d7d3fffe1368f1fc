"""A good and some bad values of every request field that goes with any prompt, for the tests of each way to
give one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.chat_options import ChatOptions
from quire.field import Field, fields_of
from quire.sampling_params import NAMES


@dataclass(frozen=True)
class FieldCase:
    """`good` is no default; `bad` is out of range or of no meaning, but of the right type; `mistyped` is of
    another type."""

    good: Any
    bad: tuple[Any, ...] = ()
    mistyped: tuple[Any, ...] = ("x",)
    needs: tuple[tuple[str, Any], ...] = ()  # other fields that `good` is fine with


_CASES = {
    "n": FieldCase(2, (0, -1, 129), ("x", 1.5, True), (("temperature", 0.5),)),
    "max_tokens": FieldCase(3, (0, -1), ("x", 1.5, True)),
    "min_tokens": FieldCase(2, (-1, 2**31 - 1), ("x", 1.5, True), (("max_tokens", 3),)),
    "temperature": FieldCase(0.5, (-0.5, 2.5), ("x", True)),
    "top_p": FieldCase(0.25, (0.0, 1.5), ("x", True)),
    "top_k": FieldCase(7, (-2,), ("x", 1.5, True)),
    "min_p": FieldCase(0.25, (-0.5, 1.5), ("x", True)),
    "presence_penalty": FieldCase(0.5, (-2.5, 2.5), ("x", True)),
    "frequency_penalty": FieldCase(-0.5, (-2.5, 2.5), ("x", True)),
    "repetition_penalty": FieldCase(1.25, (0.0, -1.0), ("x", True)),
    "seed": FieldCase(-(2**40), (), ("x", 1.5, True)),
    "logit_bias": FieldCase({"3": -2.5, "5": 1.5}, ({"3": 100.5}, {"-1": 1}), ({"x": 1}, {"3": True})),
    "allowed_token_ids": FieldCase([4, 5], ([-1], [10**6])),
    "bad_words": FieldCase(["one", "zwölf"], (["a", ""], [f"w{i}" for i in range(129)])),
    "stop": FieldCase(["one", "zwölf"], (["a", ""],)),
    "stop_token_ids": FieldCase([11, 12], ([-1], [10**6], list(range(241)))),
    "logprobs": FieldCase(2, (-1, 21), ("x", 1.5, True)),
    "prompt_logprobs": FieldCase(0, (-1, 21), ("x", 1.5, True)),
    "cache_salt": FieldCase("Straße", ("x" * 5000,), (5, True)),
    "priority": FieldCase(-3, (), ("x", 1.5, True)),
    "deadline_ms": FieldCase(60_000, (0, -1), ("x", 1.5, True)),
    "truncate_prompt_tokens": FieldCase(5, (0, -2), ("x", 1.5, True)),
}


def _plain(field: Field) -> FieldCase:
    """For a flag or a number: the other value, or one more than the default, and what is out of its range."""
    if field.type == "bool":
        return FieldCase(not field.default)
    assert field.type in ("int", "float"), f"{field.name}: no case for a field of type {field.type}"
    ends = (field.minimum - 1, field.maximum + 1)  # type: ignore[operator]
    bad = tuple(end for end in ends if -(2**31) <= end < 2**31)
    return FieldCase((field.default or 0) + 1, bad, ("x", 1.5, True) if field.type == "int" else ("x", True))


# Fields of a chat take the place of the prompt that these go with.
FIELD_CASES = {
    name: _CASES.get(name) or _plain(field)
    for name, field in NAMES.fields.items()
    if name not in fields_of(ChatOptions)
}
