"""How one request field is described and checked.

A table is a frozen keyword-only dataclass whose attributes are made with `spec(...)`. The attribute is the
only place that states a field's name, type, default, range and aliases, and the text after it its meaning;
checks, parsers and the documentation are derived from them. Nothing is coerced (true and 1.0 are no
integers), with two exceptions: an integer is fine where a float is expected, and a string that is exactly a
number is that number, since clients of Triton's vLLM backend send {"temperature": "0.1"}. null (None) always
means "not given".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidArgument, describe
from quire.model_files import each_once

MAX_JSON = 2**22  # characters: several times the ids of the largest vocabularies
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
    "string": "a non-empty string",
    "strings": "a non-empty string or a list of them",
    "ints": "a list of integers",
    "biases": "an object of token ids and numbers",
    "object": "a JSON object",
    "objects": "a list of JSON objects",
}


# From the annotation of an attribute, without "| None", to a key of _TYPE_NAMES.
_TYPES = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "string",
    "Sequence[str]": "strings",
    "Sequence[int]": "ints",
    "Mapping[int, float] | Sequence[tuple[int, float]]": "biases",
    "Mapping[str, Any]": "object",
    "Sequence[Mapping[str, Any]]": "objects",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One request field. `minimum` and `maximum` hold for each item of a list, and for each bias."""

    name: str
    type: str  # a key of _TYPE_NAMES
    default: object
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    aliases: tuple[str, ...] = ()
    newer: str = ""  # the alias that replaces the others: a request may give both, and this one counts
    opposites: tuple[str, ...] = ()  # names under which true means false
    min_items: int = 0  # of a list
    max_items: int | None = None
    max_length: int | None = None  # of a string, in characters
    max_item_bytes: int | None = None  # of each string of a list, in UTF-8
    max_bytes: int | None = None  # of all of them together
    stage: str = "sampling"  # what honours it: "prompt" (ends before the engine), "sampling", "schedule"
    unset: tuple[object, ...] = ()  # values that mean "not given", beside null
    remark: str = ""  # in brackets after what is allowed

    @property
    def range(self) -> str:
        """ "[0, 2]", "(0, 1]", "> 0" or "" when every value of the type is allowed."""
        if self.minimum is None:
            return ""
        if self.maximum is None:
            return f"{'>' if self.exclusive_minimum else '>='} {self.minimum}"
        return f"{'(' if self.exclusive_minimum else '['}{self.minimum}, {self.maximum}]"

    @property
    def allowed(self) -> str:
        allowed = _TYPE_NAMES[self.type]
        if self.range:
            allowed += f" {'in ' if self.maximum is not None else ''}{self.range}"
        if self.max_length is not None:
            allowed += f" of at most {self.max_length} characters"
        if self.min_items:
            allowed += f", at least {self.min_items} of them"
        if self.max_items is not None:
            allowed += f", at most {self.max_items} of them"
        if self.max_bytes is not None:
            allowed += f", at most {self.max_item_bytes} bytes each and {self.max_bytes} bytes together"
        return f"{allowed} ({self.remark})" if self.remark else allowed

    @property
    def is_list(self) -> bool:
        return self.type in ("strings", "ints")

    def spelled(self, name: str) -> Field:
        """A copy under the name that a request uses, for its errors."""
        return self if name == self.name else dataclasses.replace(self, name=name)

    def check(self, value: object) -> Any:
        """`value` in its canonical form (lists and objects as tuples; None when not given), or
        InvalidArgument."""
        if value is None or (value in self.unset and not isinstance(value, bool)):
            return None
        if self.type == "bool":
            if not isinstance(value, bool):
                raise self.error(value)
            return value
        if self.type in ("int", "float"):
            return self._check_number(value)
        if self.type == "string":
            return self._check_string(value, value)
        if self.type == "biases":
            return self._check_biases(value)
        if self.type in ("object", "objects"):
            return self._check_json(value)
        return self._check_list(value)

    def from_parameter(self, value: object) -> Any:
        """check() for a Triton request parameter, which is a string, a number or a boolean: lists and
        objects come as JSON strings. A string that is no JSON list of strings is itself one string
        ("[INST]"). Clients of TensorRT-LLM send an empty string for no strings."""
        if value == "" and self.type == "strings":
            return None
        if isinstance(value, str) and self.type in ("strings", "ints", "biases"):
            try:
                # As a list, a JSON object keeps a key that is given twice, for the check to see.
                parsed = load_json(value, list if self.type == "biases" else None)
            except ValueError:
                parsed = None
            if self.type == "strings":
                is_list = isinstance(parsed, list) and all(isinstance(item, str) for item in parsed)
                return self.check(parsed if is_list else value)
            if not isinstance(parsed, list):
                example = '"[1, 2]"' if self.type == "ints" else """'{"5": 1.5}'"""
                raise self.error(value, allowed=f"{self.allowed} as a JSON string, such as {example}")
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
            value = self._as_float(value)
        if not self._is_in_range(value):
            raise self.error(value)
        return value

    def _as_float(self, value: int | float) -> float:
        try:
            number = float(value)
        except OverflowError:
            raise self.error(value) from None
        if not math.isfinite(_in_32_bits(number)):
            raise self.error(number)
        return number

    def _is_in_range(self, value: int | float) -> bool:
        low, high = self.minimum, self.maximum
        if low is not None and value < low:
            return False
        if low is not None and self.exclusive_minimum and _in_32_bits(value) <= low:
            return False
        return high is None or value <= high

    def _check_string(self, item: object, given: object) -> str:
        """`item`, of `given`: itself, or a list of strings."""
        if not isinstance(item, str) or item == "":
            raise self.error(given)
        try:
            item.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(given, note=" (not valid Unicode: a lone surrogate)") from None
        if self.max_length is not None and len(item) > self.max_length:
            raise InvalidArgument(self.name, f"{len(item)} characters", self.allowed)
        return item

    def _check_list(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str) and self.type == "strings":
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise self.error(value)
        self._check_count(value)
        if self.type == "ints":
            if not all(_is_int(item) and self._is_in_range(item) for item in value):
                raise self.error(value)
            return tuple(value)
        sizes = [len(self._check_string(item, value).encode()) for item in value]
        if self.max_item_bytes is not None and max(sizes, default=0) > self.max_item_bytes:
            raise InvalidArgument(self.name, f"a string of {max(sizes)} bytes", self.allowed)
        if self.max_bytes is not None and sum(sizes) > self.max_bytes:
            raise InvalidArgument(self.name, f"{sum(sizes)} bytes together", self.allowed)
        return tuple(value)

    def _check_biases(self, value: object) -> tuple[tuple[int, float], ...]:
        """From {id: bias}, whose ids JSON spells as strings, or [[id, bias], ...]; by id."""
        items: list[Any] | tuple[Any, ...]
        if isinstance(value, Mapping):
            items = tuple(value.items())
        elif isinstance(value, (list, tuple)):
            items = value
        else:
            raise self.error(value)
        self._check_count(items)
        biases: dict[int, float] = {}
        for item in items:
            if not isinstance(item, (list, tuple)) or len(item) != 2:
                raise self.error(value)
            token_id, bias = item
            if isinstance(token_id, str) and _NUMBER["int"].fullmatch(token_id):
                token_id = int(token_id)
            if not _is_int(token_id) or not 0 <= token_id <= INT32_MAX:
                raise InvalidArgument(self.name, f"the id {describe(token_id)}", f"ids in [0, {INT32_MAX}]")
            if token_id in biases:
                raise InvalidArgument(self.name, f"the id {token_id} twice", "each id once")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)):
                raise self.error(value)
            biases[token_id] = self._as_float(bias)
            if not self._is_in_range(biases[token_id]):
                given = f"{describe(bias)} for the id {token_id}"
                raise InvalidArgument(self.name, given, self.allowed)
        return tuple(sorted(biases.items()))

    def _check_json(self, value: object) -> Any:
        """Plain JSON values, from a string that spells them too: tensors and request parameters hold no
        others."""
        try:
            text = value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError, RecursionError):  # a value of Python's that JSON does not have
            raise self.error(value) from None
        value = read_json(text, self.name, self.allowed)
        items = [value] if self.type == "object" else value
        if not isinstance(items, list):
            raise self.error(value)
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                name = self.name if self.type == "object" else f"{self.name}[{index}]"
                raise InvalidArgument(name, describe(item), "a JSON object")
        self._check_count(items)
        return value

    def _check_count(self, items: list[Any] | tuple[Any, ...]) -> None:
        too_many = self.max_items is not None and len(items) > self.max_items
        if too_many or len(items) < self.min_items:
            raise InvalidArgument(self.name, f"{len(items)} of them", self.allowed)


def spec(default: object, **rest: Any) -> Any:
    """A dataclass attribute that is a request field: see Field for the keywords. Integers have 32 bits where
    nothing else is said."""
    return dataclasses.field(default=default, metadata=rest)


_FIELDS: dict[type, Mapping[str, Field]] = {}


def fields_of(table: type) -> Mapping[str, Field]:
    """The fields of a table by name."""
    if table not in _FIELDS:
        _FIELDS[table] = {item.name: _field(item) for item in dataclasses.fields(table)}
    return _FIELDS[table]


def _field(item: dataclasses.Field[Any]) -> Field:
    kind = _TYPES[str(item.type).removesuffix(" | None")]
    rest: dict[str, Any] = {"maximum": INT32_MAX} if kind in ("int", "ints") else {}
    return Field(name=item.name, type=kind, default=item.default, **rest | dict(item.metadata))


class JsonError(ValueError):
    """JSON that Python could read, and that no request may have."""


def load_json(
    text: str, object_pairs_hook: Callable[[list[tuple[str, object]]], object] | None = None
) -> Any:
    """The value that `text` spells. Raises json.JSONDecodeError, or JsonError for what JSON lacks (NaN)
    and for what is too long or too deep; both are ValueError."""
    if len(text) > MAX_JSON:
        raise JsonError(f"JSON of {len(text)} characters (at most {MAX_JSON} are read)")
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=_refuse_constant)
    except (json.JSONDecodeError, InvalidArgument, JsonError):
        raise
    except RecursionError:
        raise JsonError("JSON nested too deeply") from None
    except ValueError:  # Python's own words are advice for programmers
        raise JsonError("malformed JSON: an integer of thousands of digits") from None


def read_json(text: str, field: str, allowed: str) -> Any:
    """The value that `text` spells; errors name `field` and the position. A key given twice is an error."""

    def refuse(key: str) -> InvalidArgument:
        return InvalidArgument(field, f"the key {describe(key)} twice", "each key once")

    try:
        return load_json(text, each_once(refuse))
    except json.JSONDecodeError as error:
        given = f"malformed JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidArgument(field, given, allowed) from None
    except JsonError as error:
        raise InvalidArgument(field, str(error), allowed) from None


def is_number(text: str) -> bool:
    """Whether `text` is exactly a number."""
    return _NUMBER["float"].fullmatch(text) is not None


def _refuse_constant(name: str) -> object:
    raise JsonError(f"malformed JSON: {name} is no JSON number")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in_32_bits(value: float) -> float:
    """The value as the engine keeps it: 1e-50 is 0, 1e39 infinite."""
    stored: float = struct.unpack("f", struct.pack("f", value))[0]
    return stored
