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
from typing import Any, TypeVar

from quire.errors import InvalidArgument, describe, did_you_mean

T = TypeVar("T")

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
    opposites: tuple[str, ...] = ()  # names under which true means false
    max_items: int | None = None  # of a list
    is_prompts: bool = False  # it shapes the prompt, and ends before the engine
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

    def spelled(self, name: str) -> Field:
        """The same under the name that a request uses, for its errors."""
        return self if name == self.name else dataclasses.replace(self, name=name)

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
                is_whole = value.is_integer() and abs(value) < 2**53
                note = f" (a float; write {int(value)})" if is_whole else " (a float)"
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


@dataclass(frozen=True)
class Entry:
    """A field that a request gives: its checked value, and how and where it was written."""

    field: str
    value: Any
    name: str  # as the request spells it
    source: str = ""


@dataclass(frozen=True)
class Given:
    """All that a request gives: an Entry of each field."""

    entries: Mapping[str, Entry]

    @property
    def values(self) -> dict[str, Any]:
        return {name: entry.value for name, entry in self.entries.items()}

    def make(self, table: type[T]) -> T:
        """`table` of its fields among these. Errors name the field as the request spells it."""
        names = fields_of(table)
        try:
            return table(**{name: value for name, value in self.values.items() if name in names})
        except InvalidArgument as error:
            raise self.as_spelled(error, names) from None

    def as_spelled(self, error: InvalidArgument, fields: Mapping[str, Field]) -> InvalidArgument:
        """An error of one of `fields`, in the words of the request."""
        entry = self.entries.get(error.field)
        if entry is None or entry.name == error.field:
            return error
        if entry.name in fields[error.field].opposites:
            given = f"{describe(not entry.value)}, which means {error.field} {error.given}"
            return InvalidArgument(entry.name, given, f"{error.field} {error.allowed}")
        return InvalidArgument(entry.name, error.given, error.allowed)


class Names:
    """Every name that a request may use: canonical names and aliases."""

    def __init__(self, fields: Mapping[str, Field], not_yet: Iterable[str] = ()) -> None:
        self.fields = dict(fields)
        self._not_yet = frozenset(not_yet)
        self._canonical = {name: name for name in fields}
        for field in fields.values():
            self._canonical |= dict.fromkeys((*field.aliases, *field.opposites), field.name)

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
        if (field := self.fields.get(self._canonical.get(name, ""))) is not None:
            what = "the opposite" if name in field.opposites else "another system's name"
            return InvalidArgument(name, f'{what} of "{field.name}"', known)
        return InvalidArgument(
            _printable(name), f"an unknown field{did_you_mean(name, self._canonical)}", known
        )

    def read(
        self,
        values: Mapping[str, object],
        source: str = "",
        *,
        parameters: bool = False,
        unknown: list[InvalidArgument] | None = None,
    ) -> list[Entry]:
        """The fields that are given, checked. `parameters`: values are Triton request parameters.
        `unknown`: takes the errors of unknown names, which are raised without it."""
        check = Field.from_parameter if parameters else Field.check
        entries = []
        for name, value in values.items():
            if unknown is not None and name not in self._canonical:
                unknown.append(self.unknown(name))
                continue
            field = self.find(name)
            checked = check(field.spelled(name), value)
            if checked is not None:
                checked = not checked if name in field.opposites else checked
                entries.append(Entry(field.name, checked, name, source))
        return entries

    def parse(self, values: Mapping[str, object], *, parameters: bool = False) -> dict[str, Any]:
        """Canonical name -> checked value of each field that is given. Two spellings of one field must
        agree."""
        return merge(self.read(values, parameters=parameters)).values


def merge(entries: Iterable[Entry]) -> Given:
    """A field that two entries give differently is an error which names both."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        first = merged.setdefault(entry.field, entry)
        if first.value != entry.value:
            given = f"{_origin(first, entry)} and {_origin(entry, first)}"
            raise InvalidArgument(entry.field, given, "one value")
    return Given(merged)


def _origin(entry: Entry, other: Entry) -> str:
    """The value, with what tells one entry from the other: spelling, place, or both."""
    where = [entry.name] if entry.name != other.name else []
    where += [entry.source] if entry.source != other.source else []
    return f"{describe(entry.value)} ({', '.join(where)})"


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
