"""The one schema of request fields: `SamplingParams` (what to generate), `RequestOptions` (what to send).

Names are vLLM's and those of Triton's vLLM backend; other systems' spellings are aliases. A test keeps
`docs/request_fields.md` (`python -m quire.sampling_params`) and the C++ core's ranges equal to these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from quire.errors import InvalidArgument, describe
from quire.schema import INT32_MAX, INT64_MAX, INT64_MIN, Names, fields_of, merge, spec

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
    "stream_interval",
    "structured_outputs",
    "lora_name",
)

T = TypeVar("T", bound="_Table")


class _Table:
    """Checks every attribute against its field, and names the nearest one for an unknown keyword."""

    _named: frozenset[str]  # fields that were given

    # Only looks at the names, before the generated __init__ would raise a bare TypeError.
    def __new__(cls, **values: object) -> _Table:
        for name in values:
            if name not in fields_of(cls):
                raise _names(cls).unknown(name)
        table = super().__new__(cls)
        object.__setattr__(table, "_named", frozenset(values))
        return table

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = field.check(getattr(self, name))
            if value is None:
                object.__setattr__(self, "_named", self._named - {name})
                value = field.default
            object.__setattr__(self, name, value)

    @property
    def given(self) -> Mapping[str, Any]:
        """The fields that were given, also those given as the table's default."""
        return {name: getattr(self, name) for name in fields_of(type(self)) if name in self._named}

    def with_defaults(self: T, defaults: Mapping[str, Any]) -> T:
        """The same with `defaults` for the fields that were not given."""
        return type(self)(**{**defaults, **self.given}) if defaults else self

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, object]) -> T:
        """From a JSON object: aliases are known, null means "not given"."""
        return merge(_names(cls).read(values)).make(cls)

    @classmethod
    def from_parameters(cls: type[T], values: Mapping[str, object]) -> T:
        """From Triton request parameters: strings, numbers and booleans; lists as JSON strings."""
        return merge(_names(cls).read(values, parameters=True)).make(cls)


@dataclass(frozen=True, kw_only=True)
class SamplingParams(_Table):
    """What a request asks of sampling and of stopping."""

    max_tokens: int | None = spec(
        "int",
        None,
        "Output tokens at most. Not given: as many as the server's max_output_tokens and the context allow.",
        minimum=1,
        maximum=INT32_MAX,
        aliases=(
            "max_new_tokens",
            "max_completion_tokens",
            "request_output_len",
            "sampling_param_max_tokens",
        ),
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
        aliases=("sampling_param_temperature",),
    )
    top_p: float = spec(
        "float",
        1.0,
        "Sample among the likeliest tokens whose probabilities sum up to this.",
        minimum=0,
        maximum=1,
        exclusive_minimum=True,
        aliases=("runtime_top_p", "sampling_param_top_p"),
    )
    top_k: int = spec(
        "int",
        0,
        "Sample among so many of the likeliest tokens. 0 or -1: all.",
        minimum=-1,
        maximum=INT32_MAX,
        aliases=("runtime_top_k", "sampling_param_top_k"),
    )
    seed: int | None = spec(
        "int",
        None,
        "Same seed, prompt and engine settings: same tokens. Not given, null or -1: drawn for each request.",
        minimum=INT64_MIN,
        maximum=INT64_MAX,
        aliases=("random_seed", "sampling_seed", "sampling_param_seed"),
        unset=(-1,),
    )
    stop: Sequence[str] = spec(
        "strings",
        (),
        "Generation ends where the text contains one of these strings.",
        aliases=("stop_words", "stop_sequences", "stop_strings", "sampling_param_stop"),
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
        "bool",
        False,
        "The stop string, or the stop token's text, stays at the end of the text.",
        aliases=("no_stop_trim",),
    )
    skip_special_tokens: bool = spec("bool", True, "Special tokens are left out of the text.")
    truncate_prompt_tokens: int | None = spec(
        "int",
        None,
        "Only so many tokens of the prompt are kept: the end of its text, behind the special tokens that the "
        "tokenizer puts in front. -1: as many as fit; 0 is an error. The model generation does not know it.",
        minimum=-1,
        maximum=INT32_MAX,
        aliases=("truncate",),
        is_prompts=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncate_prompt_tokens == 0:
            raise InvalidArgument("truncate_prompt_tokens", "0", "at least 1, or -1 (as many as fit)")
        if self.max_tokens and self.min_tokens > self.max_tokens:
            raise InvalidArgument(
                "min_tokens", describe(self.min_tokens), f"an integer in [0, {self.max_tokens}] (max_tokens)"
            )

    def to_core(self) -> _core.SamplingParams:
        """The same in C++."""
        from quire import _core

        values = {name: getattr(self, name) for name in ENGINE_FIELDS}
        return _core.SamplingParams(**values | {"max_tokens": self.max_tokens or 0})


@dataclass(frozen=True, kw_only=True)
class RequestOptions(_Table):
    """How the answer is sent and what comes with it. In the ensemble these are also input tensors."""

    stream: bool = spec("bool", False, "Send text as it is generated.", aliases=("streaming",))
    exclude_input_in_output: bool | None = spec(
        "bool",
        None,
        "Leave the prompt out of text_output. Default: true when streaming (false is an error), else false.",
        aliases=("exclude_input_from_output", "sampling_param_exclude_input_from_output"),
        opposites=("echo", "return_full_text"),
    )
    return_finish_reason: bool = spec("bool", False, "Also answer finish_reason.")
    return_cumulative_logprob: bool = spec("bool", False, "Not supported yet: true is an error.")
    return_logprobs: bool = spec("bool", False, "Not supported yet: true is an error.")
    return_num_input_tokens: bool = spec("bool", False, "Also answer num_input_tokens.")
    return_num_output_tokens: bool = spec("bool", False, "Also answer num_output_tokens, of this chunk.")
    strict: bool = spec(
        "bool",
        True,
        "false: names that are unknown or not supported yet are ignored, and listed in the output warnings.",
    )

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
ENGINE_FIELDS = tuple(name for name, field in fields_of(SamplingParams).items() if not field.is_prompts)
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
        'null means "not given". Fields that are lists are also input tensors of the ensemble, so that',
        "`generate` takes lists as top-level keys. Other request parameters (gRPC) hold no lists: give them",
        "inside `sampling_parameters`, or as JSON strings.",
        "",
        "Names of other systems stand for ours in request parameters, in `sampling_parameters` and in",
        "`SamplingParams.from_dict`; names of tensors and Python keywords are ours alone. Two names of one",
        "field must say the same.",
        "",
        "`temperature`, `top_p` and `top_k` that a request leaves out are those of the checkpoint's",
        "`generation_config.json` where it has them, unless model.json says otherwise (`generation_config`,",
        "`override_generation_config`); `do_sample: false` there means temperature 0. This holds for the",
        "ensemble, for `generation` called directly and for `quire.LLM`; the engine's log names the values.",
    ]
    for table in (SamplingParams, RequestOptions):
        assert table.__doc__
        lines += ["", f"## {table.__name__}", "", table.__doc__, ""]
        lines += ["| name | type | default | range | also accepted | meaning |", "|---|---|---|---|---|---|"]
        for field in fields_of(table).values():
            kind = {"strings": "string or list of strings", "ints": "list of integers"}.get(
                field.type, field.type
            )
            aliases = ", ".join(
                [f"`{alias}`" for alias in field.aliases]
                + [f"`{alias}`, the opposite" for alias in field.opposites]
            )
            default = describe(field.default)
            cells = [f"`{field.name}`", kind, default, field.range, aliases, field.doc]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(docs_page(), end="")
