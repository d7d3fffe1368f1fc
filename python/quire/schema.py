"""The names of request fields, and what a request gives under them.

`Names` reads each of a request's sources (tensors, JSON, request parameters) into entries, `merge` joins
them, `Given.make` fills a table of `sampling_params`. How one field is described and checked: `quire.field`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from quire.errors import InvalidArgument, describe, did_you_mean
from quire.field import Field, fields_of, is_number, read_json

MAX_NAMES = 256  # of a JSON object, or of request parameters

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A field that a request gives: its checked value, and how and where it was written."""

    field: str
    value: Any
    name: str  # as the request spells it
    source: str = ""
    is_newer: bool = False  # it counts where the request gives the field's other names too


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

    def __init__(
        self, fields: Mapping[str, Field], not_yet: Mapping[str, tuple[object, ...]] | None = None
    ) -> None:
        """not_yet: names that are not supported yet, each with the values that ask for nothing."""
        self.fields = dict(fields)
        self._not_yet = not_yet or {}
        self._canonical = {name: name for name in fields}
        for field in fields.values():
            self._canonical |= dict.fromkeys((*field.aliases, *field.opposites), field.name)

    def find(self, name: str) -> Field:
        """The field that `name` means, or InvalidArgument naming the nearest one."""
        canonical = self._canonical.get(name)
        if canonical is None:
            raise self.unknown(name)
        return self.fields[canonical]

    def unknown(self, name: str, *, has_hint: bool = True) -> InvalidArgument:
        """has_hint: say which known name is near, which takes a millisecond."""
        known = "the fields of docs/request_fields.md"
        if name in self._not_yet:
            neutral = " or ".join(describe(value) for value in (None, *self._not_yet[name]))
            return InvalidArgument(name, "a field that is not supported yet", f"{neutral}: asks for nothing")
        if (field := self.fields.get(self._canonical.get(name, ""))) is not None:
            what = "the opposite" if name in field.opposites else "another system's name"
            return InvalidArgument(name, f'{what} of "{field.name}"', known)
        hint = did_you_mean(name, self._canonical) if has_hint else ""
        return InvalidArgument(_printable(name), f"an unknown field{hint}", known)

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
            if name in self._not_yet and _is_one_of(value, (None, *self._not_yet[name])):
                continue
            if unknown is not None and name not in self._canonical:
                unknown.append(self.unknown(name, has_hint=not unknown))
                continue
            field = self.find(name)
            checked = check(field.spelled(name), value)
            if checked is not None:
                checked = not checked if name in field.opposites else checked
                entries.append(Entry(field.name, checked, name, source, name == field.newer))
        return entries


def merge(entries: Iterable[Entry]) -> Given:
    """A field that two entries give differently is an error which names both, but a newer name replaces the
    others."""
    merged: dict[str, Entry] = {}
    for entry in entries:
        first = merged.setdefault(entry.field, entry)
        if first.is_newer != entry.is_newer:
            merged[entry.field] = entry if entry.is_newer else first
        elif first.value != entry.value:
            given = f"{_origin(first, entry)} and {_origin(entry, first)}"
            raise InvalidArgument(entry.field, given, "one value")
    return Given(merged)


def _origin(entry: Entry, other: Entry) -> str:
    """The value, with what tells one entry from the other: spelling, place, or both."""
    where = [entry.name] if entry.name != other.name else []
    where += [entry.source] if entry.source != other.source else []
    return f"{describe(entry.value)} ({', '.join(where)})"


def parse_json_object(text: str, field: str) -> dict[str, object]:
    """The JSON object in `text`; errors name `field`."""
    allowed = "a JSON object"
    value = read_json(text, field, allowed)
    if not isinstance(value, dict):
        raise InvalidArgument(field, describe(value), allowed)
    require_few(value, field)
    return value


def require_few(values: Collection[str], field: str) -> None:
    """No more names than any request can need: each is looked at."""
    if len(values) > MAX_NAMES:
        raise InvalidArgument(field, f"{len(values)} names", f"at most {MAX_NAMES}")


def _is_one_of(value: object, neutral: Iterable[object]) -> bool:
    if isinstance(value, str) and is_number(value):
        value = float(value)
    return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in neutral)


def _printable(name: str) -> str:
    """A name that a client sent: without quotes, where that reads well."""
    shown = describe(name)
    return shown[1:-1] if name and shown.endswith('"') else shown
