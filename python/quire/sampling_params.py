"""The one schema of request fields: `SamplingParams` (what to generate), `RequestOptions` (what to send).

Names are vLLM's and those of Triton's vLLM backend; other systems' spellings are aliases. A test keeps
`docs/request_fields.md` (`python -m quire.sampling_params`) and the C++ core's ranges equal to these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from quire.errors import InvalidArgument, describe
from quire.schema import INT32_MAX, INT64_MAX, INT64_MIN, Names, fields_of, spec

if TYPE_CHECKING:
    from quire import _core

__all__ = ["NAMES", "RequestOptions", "SamplingParams", "docs_page"]


# Names of vLLM's SamplingParams that mean something we do not do yet. They are refused as such.
NOT_YET = (
    "n",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "bad_words",
    "logprobs",
    "prompt_logprobs",
    "logit_bias",
    "allowed_token_ids",
    "detokenize",
    "cache_salt",
    "truncate_prompt_tokens",
    "stream_interval",
    "echo",
    "structured_outputs",
    "lora_name",
)

T = TypeVar("T", bound="_Table")


class _Table:
    """Checks every attribute against its field, and names the nearest one for an unknown keyword."""

    # Only looks at the names, before the generated __init__ would raise a bare TypeError.
    def __new__(cls, **values: object) -> _Table:
        for name in values:
            if name not in fields_of(cls):
                raise _names(cls).unknown(name)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = field.check(getattr(self, name))
            object.__setattr__(self, name, field.default if value is None else value)

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, object]) -> T:
        """From a JSON object: aliases are known, null means "not given"."""
        return cls(**_names(cls).parse(values))

    @classmethod
    def from_parameters(cls: type[T], values: Mapping[str, object]) -> T:
        """From Triton request parameters: strings, numbers and booleans; lists as JSON strings."""
        return cls(**_names(cls).parse(values, parameters=True))


@dataclass(frozen=True, kw_only=True)
class SamplingParams(_Table):
    """What a request asks of sampling and of stopping."""

    max_tokens: int | None = spec(
        "int",
        None,
        "Output tokens at most. Not given: as many as fit into the context.",
        minimum=1,
        maximum=INT32_MAX,
        aliases=("max_new_tokens",),
    )
    min_tokens: int = spec(
        "int",
        0,
        "End-of-sequence and stop tokens are not sampled before so many output tokens. At most max_tokens.",
        minimum=0,
        maximum=INT32_MAX,
        aliases=("min_new_tokens",),
    )
    temperature: float = spec(
        "float",
        1.0,
        "Divides the logits before sampling. 0: always the likeliest token (greedy).",
        minimum=0,
        maximum=2,
    )
    top_p: float = spec(
        "float",
        1.0,
        "Sample among the likeliest tokens whose probabilities sum up to this.",
        minimum=0,
        maximum=1,
        exclusive_minimum=True,
    )
    top_k: int = spec(
        "int", 0, "Sample among so many of the likeliest tokens. 0 or -1: all.", minimum=-1, maximum=INT32_MAX
    )
    seed: int | None = spec(
        "int",
        None,
        "Same seed, prompt and engine settings: same tokens. Not given, null or -1: drawn for each request.",
        minimum=INT64_MIN,
        maximum=INT64_MAX,
        aliases=("random_seed", "sampling_seed"),
        unset=(-1,),
    )
    stop: Sequence[str] = spec(
        "strings",
        (),
        "Generation ends where the text contains one of these strings.",
        aliases=("stop_words",),
    )
    stop_token_ids: Sequence[int] = spec(
        "ints",
        (),
        "Generation ends at one of these token ids, which must be in the model's vocabulary. At most 240.",
        minimum=0,
        maximum=INT32_MAX,
        max_items=240,
    )
    ignore_eos: bool = spec("bool", False, "Go on past end-of-sequence tokens.")
    include_stop_str_in_output: bool = spec(
        "bool", False, "The stop string, or the stop token's text, stays at the end of the text."
    )
    skip_special_tokens: bool = spec("bool", True, "Special tokens are left out of the text.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens and self.min_tokens > self.max_tokens:
            raise InvalidArgument(
                "min_tokens", describe(self.min_tokens), f"an integer in [0, {self.max_tokens}] (max_tokens)"
            )

    def to_core(self) -> _core.SamplingParams:
        """The same in C++."""
        from quire import _core

        values = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        return _core.SamplingParams(**values | {"max_tokens": self.max_tokens or 0})


@dataclass(frozen=True, kw_only=True)
class RequestOptions(_Table):
    """How the answer is sent and what comes with it. In the ensemble these are also input tensors."""

    stream: bool = spec("bool", False, "Send text as it is generated.")
    exclude_input_in_output: bool | None = spec(
        "bool",
        None,
        "Leave the prompt out of text_output. Default: true when streaming (false is an error), else false.",
    )
    return_finish_reason: bool = spec("bool", False, "Also answer finish_reason.")
    return_cumulative_logprob: bool = spec("bool", False, "Not supported yet: true is an error.")
    return_logprobs: bool = spec("bool", False, "Not supported yet: true is an error.")
    return_num_input_tokens: bool = spec("bool", False, "Also answer num_input_tokens.")
    return_num_output_tokens: bool = spec("bool", False, "Also answer num_output_tokens, of this chunk.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("return_cumulative_logprob", "return_logprobs"):
            if getattr(self, name):
                raise InvalidArgument(name, "true", "false (log probabilities are not supported yet)")
        if self.stream and self.exclude_input_in_output is False:
            raise InvalidArgument("exclude_input_in_output", "false with stream true", "true when streaming")

    @property
    def includes_prompt(self) -> bool:
        """Whether the prompt's text precedes the answer's."""
        if self.exclude_input_in_output is None:
            return not self.stream
        return not self.exclude_input_in_output


def _names(table: type) -> Names:
    return Names(fields_of(table), NOT_YET)


NAMES = Names({**fields_of(SamplingParams), **fields_of(RequestOptions)}, NOT_YET)
SAMPLING_FIELDS = tuple(fields_of(SamplingParams))
OPTION_FIELDS = tuple(fields_of(RequestOptions))


def docs_page() -> str:
    """docs/request_fields.md."""
    lines = [
        "# Request fields",
        "",
        "Generated by `python -m quire.sampling_params > docs/request_fields.md`.",
        "",
        "Wrong types are errors: true and 1.0 are no integers (1 is fine for a float). A string that is",
        'exactly a number, such as "0.1", is that number, since clients of Triton\'s vLLM backend send them.',
        'null means "not given". Triton request parameters (top-level keys of `generate`) hold strings,',
        "numbers and booleans: give lists inside `sampling_parameters`, or as JSON strings.",
    ]
    for table in (SamplingParams, RequestOptions):
        assert table.__doc__
        lines += ["", f"## {table.__name__}", "", table.__doc__, ""]
        lines += ["| name | type | default | range | also accepted | meaning |", "|---|---|---|---|---|---|"]
        for field in fields_of(table).values():
            kind = {"strings": "string or list of strings", "ints": "list of integers"}.get(
                field.type, field.type
            )
            aliases = ", ".join(f"`{alias}`" for alias in field.aliases)
            default = describe(field.default)
            cells = [f"`{field.name}`", kind, default, field.range, aliases, field.doc]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(docs_page(), end="")
