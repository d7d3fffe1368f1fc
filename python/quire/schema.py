"""How a request field is described and checked: the machinery under the tables of `sampling_params`.

A table is a frozen keyword-only dataclass whose attributes are made with `spec(...)`. The attribute is the
only place that states a field's name, type, default, range, aliases and meaning; checks, parsers and the
documentation are derived from it. Nothing is coerced (true and 1.0 are no integers), with two exceptions:
an integer is fine where a float is expected, and a string that is exactly a number is that number, since
clients of Triton's vLLM backend send {"temperature": "0.1"}. null (None) always means "not given".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidArgument, describe, did_you_mean

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# Number literals of JSON, of at most as many digits as make sense.
_NUMBER = {
    "int": re.compile(r"-?(0|[1-9]\d{0,19})", re.ASCII),
    "float": re.compile(r"-?(0|[1-9]\d{0,19})(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII),
}

_TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "strings": "a non-empty string or a list of them",
    "ints": "a list of integers",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One request field. `minimum` and `maximum` hold for each item of a list."""

    name: str
    type: str  # a key of _TYPE_NAMES
    default: object
    doc: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    aliases: tuple[str, ...] = ()
    max_items: int | None = None  # of a list
    unset: tuple[object, ...] = ()  # values that mean "not given", beside null

    @property
    def range(self) -> str:
        """ "[0, 2]", "(0, 1]" or "" when every value of the type is allowed."""
        if self.minimum is None or self.maximum is None:
            return ""
        return f"{'(' if self.exclusive_minimum else '['}{self.minimum}, {self.maximum}]"

    @property
    def allowed(self) -> str:
        allowed = f"{_TYPE_NAMES[self.type]} in {self.range}" if self.range else _TYPE_NAMES[self.type]
        return allowed if self.max_items is None else f"{allowed}, at most {self.max_items} of them"

    @property
    def tensor_type(self) -> str:
        """Its type as an input of the model `generation`."""
        if self.type == "int":
            return "TYPE_INT32" if self.maximum == INT32_MAX else "TYPE_INT64"
        return {"float": "TYPE_FP32", "bool": "TYPE_BOOL", "strings": "TYPE_STRING", "ints": "TYPE_INT32"}[
            self.type
        ]

    def check(self, value: object) -> Any:
        """`value` in its canonical form (lists as tuples; None when not given), or InvalidArgument."""
        if value is None or (value in self.unset and not isinstance(value, bool)):
            return None
        if self.type == "bool":
            if not isinstance(value, bool):
                raise self.error(value)
            return value
        if self.type in ("int", "float"):
            return self._check_number(value)
        return self._check_list(value)

    def from_parameter(self, value: object) -> Any:
        """As check(), from a Triton request parameter, which is a string, a number or a boolean: lists come
        as JSON strings. A string that is no JSON list of strings is itself one stop string ("[INST]")."""
        if isinstance(value, str) and self.type in ("strings", "ints"):
            try:
                parsed = json.loads(value, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                parsed = None
            if self.type == "ints":
                if not isinstance(parsed, list):
                    raise self.error(value, allowed=self.allowed + ' as a JSON string, such as "[1, 2]"')
                return self.check(parsed)
            if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
                return self.check(parsed)
        return self.check(value)

    def error(self, value: object, *, note: str = "", allowed: str = "") -> InvalidArgument:
        return InvalidArgument(self.name, describe(value) + note, allowed or self.allowed)

    def _check_number(self, value: object) -> int | float:
        if isinstance(value, str) and _NUMBER[self.type].fullmatch(value):
            value = int(value) if self.type == "int" else float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            note = " (a string)" if isinstance(value, str) else ""
            raise self.error(value, note=note)
        if self.type == "int":
            if isinstance(value, float):
                note = f" (a float; write {int(value)})" if value.is_integer() else " (a float)"
                raise self.error(value, note=note)
        else:
            try:
                value = float(value)
            except OverflowError:
                raise self.error(value) from None
            if not math.isfinite(value):
                raise self.error(value)
        low, high = self.minimum, self.maximum
        if low is not None and (value < low or (self.exclusive_minimum and self._as_stored(value) <= low)):
            raise self.error(value)
        if high is not None and value > high:
            raise self.error(value)
        return value

    def _as_stored(self, value: int | float) -> int | float:
        # The engine keeps floats in 32 bits, where 1e-50 is 0.
        return struct.unpack("f", struct.pack("f", value))[0] if self.type == "float" else value

    def _check_list(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str) and self.type == "strings":
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise self.error(value)
        if self.max_items is not None and len(value) > self.max_items:
            raise InvalidArgument(self.name, f"{len(value)} of them", self.allowed)
        for item in value:
            if self.type == "strings":
                if not isinstance(item, str) or item == "":
                    raise self.error(value)
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError:
                    raise self.error(value, note=" (not valid Unicode: a lone surrogate)") from None
            else:
                if isinstance(item, bool) or not isinstance(item, int):
                    raise self.error(value)
                if not (self.minimum or 0) <= item <= (self.maximum or INT32_MAX):
                    raise self.error(value)
        return tuple(value)


def spec(type: str, default: object, doc: str, **rest: Any) -> Any:
    """A dataclass attribute that is a request field: see Field for the keywords."""
    return dataclasses.field(default=default, metadata={"type": type, "doc": doc, **rest})


_FIELDS: dict[type, Mapping[str, Field]] = {}


def fields_of(table: type) -> Mapping[str, Field]:
    """The fields of a table by name."""
    if table not in _FIELDS:
        _FIELDS[table] = {
            item.name: Field(name=item.name, default=item.default, **item.metadata)
            for item in dataclasses.fields(table)
        }
    return _FIELDS[table]


class Names:
    """Every name that a request may use: canonical names and aliases."""

    def __init__(self, fields: Mapping[str, Field], not_yet: Iterable[str] = ()) -> None:
        self.fields = dict(fields)
        self._not_yet = frozenset(not_yet)
        self._canonical = {alias: field.name for field in fields.values() for alias in field.aliases}
        self._canonical |= {name: name for name in fields}

    def find(self, name: str) -> Field:
        """The field that `name` means, or InvalidArgument naming the nearest one."""
        canonical = self._canonical.get(name)
        if canonical is None:
            raise self.unknown(name)
        return self.fields[canonical]

    def unknown(self, name: str) -> InvalidArgument:
        known = ", ".join(self.fields)
        if name in self._not_yet:
            return InvalidArgument(name, "a field that is not supported yet", known)
        if name in self._canonical:
            return InvalidArgument(name, f'another system\'s name of "{self._canonical[name]}"', known)
        return InvalidArgument(
            _printable(name), f"an unknown field{did_you_mean(name, self._canonical)}", known
        )

    def parse(self, values: Mapping[str, object], *, parameters: bool = False) -> dict[str, Any]:
        """Canonical name -> checked value of each field that is given. `parameters`: values are Triton
        request parameters. Two spellings of one field must agree."""
        check = Field.from_parameter if parameters else Field.check
        given = []
        for name, value in values.items():
            field = self.find(name)
            checked = check(field, value)
            if checked is not None:
                given.append((name, {field.name: checked}))
        return merge(given)


def merge(sources: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One dictionary from several named ones; a field that two of them give differently is an error."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in sources:
        for name, value in values.items():
            if name in merged and merged[name] != value:
                given = f"{describe(merged[name])} ({origin[name]}) and {describe(value)} ({source})"
                raise InvalidArgument(name, given, "one value")
            merged.setdefault(name, value)
            origin.setdefault(name, source)
    return merged


def parse_json_object(text: str, field: str) -> dict[str, object]:
    """The JSON object in `text`; errors name `field` and the position. A key given twice is an error."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(field, f"the key {describe(twice)} twice", "each key once")
        return result

    allowed = "a JSON object"
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        given = f"malformed JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidArgument(field, given, allowed) from None
    except InvalidArgument:
        raise
    except RecursionError:
        raise InvalidArgument(field, "JSON nested too deeply", allowed) from None
    except ValueError as error:  # NaN, Infinity, integers of thousands of digits
        raise InvalidArgument(field, f"malformed JSON: {error}", allowed) from None
    if not isinstance(value, dict):
        raise InvalidArgument(field, describe(value), allowed)
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _printable(name: str) -> str:
    return describe(name)[1:-1]
