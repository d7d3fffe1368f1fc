"""What every table of request fields can do: check itself, read what a client sends, name the nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from quire.field import fields_of
from quire.schema import Names, merge

# What clients of vLLM send that means something we do not do yet, with the values that ask for nothing, as
# null does: clients send every field with its default. Other values are refused.
NOT_YET: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "early_stopping": (False,),
    "extra_args": ({},),
    "flat_logprobs": (False,),
    "guided_choice": (),
    "guided_decoding": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora_name": (),
    "output_kind": (0,),
    "response_format": ({"type": "text"},),
    "skip_reading_prefix_cache": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "use_beam_search": (False,),
}

T = TypeVar("T", bound="Table")


class Table:
    """Checks every attribute against its field, and names the nearest one for an unknown keyword."""

    _named: frozenset[str]  # fields that were given

    # Only looks at the names, before the generated __init__ would raise a bare TypeError.
    def __new__(cls, **values: object) -> Table:
        for name in values:
            if name not in fields_of(cls):
                raise names_of(cls).unknown(name)
        table = super().__new__(cls)
        object.__setattr__(table, "_named", frozenset(values))
        return table

    def __post_init__(self) -> None:
        fields = fields_of(type(self))
        for name in self._named:  # the others have their defaults
            value = fields[name].check(getattr(self, name))
            if value is None:
                object.__setattr__(self, "_named", self._named - {name})
                value = fields[name].default
            object.__setattr__(self, name, value)

    @property
    def given(self) -> Mapping[str, Any]:
        """The fields that were given, also those given as the table's default."""
        return {name: getattr(self, name) for name in fields_of(type(self)) if name in self._named}

    def with_defaults(self: T, defaults: Mapping[str, Any]) -> T:
        """A copy with `defaults` for the fields that were not given."""
        return type(self)(**{**defaults, **self.given}) if defaults else self

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, object]) -> T:
        """From a JSON object: aliases are known, null means "not given"."""
        return merge(names_of(cls).read(values)).make(cls)


def names_of(table: type) -> Names:
    """The names of a table's fields."""
    return Names(fields_of(table), NOT_YET)
