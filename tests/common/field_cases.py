"""A good and some bad values of every request field, for the tests of each way to give one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quire.sampling_params import NAMES


@dataclass(frozen=True)
class FieldCase:
    """`good` is no default; `bad` is out of range or of no meaning, but of the right type; `mistyped` is of
    another type."""

    good: Any
    bad: tuple[Any, ...] = ()
    mistyped: tuple[Any, ...] = ("x",)
    needs: tuple[tuple[str, Any], ...] = ()  # other fields that `good` is fine with


FIELD_CASES = {
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
    "ignore_eos": FieldCase(True),
    "include_stop_str_in_output": FieldCase(True),
    "skip_special_tokens": FieldCase(False),
    "detokenize": FieldCase(False),
    "logprobs": FieldCase(2, (-1, 21), ("x", 1.5, True)),
    "prompt_logprobs": FieldCase(0, (-1, 21), ("x", 1.5, True)),
    "stream_interval": FieldCase(4, (0,), ("x", 1.5, True)),
    "cache_salt": FieldCase("Straße", ("x" * 5000,), (5, True)),
    "priority": FieldCase(-3, (), ("x", 1.5, True)),
    "deadline_ms": FieldCase(60_000, (0, -1), ("x", 1.5, True)),
    "truncate_prompt_tokens": FieldCase(5, (0, -2), ("x", 1.5, True)),
    "add_special_tokens": FieldCase(False),
    "stream": FieldCase(True),
    "exclude_input_in_output": FieldCase(True),
    "return_finish_reason": FieldCase(True),
    "return_stop_reason": FieldCase(True),
    "return_cumulative_logprob": FieldCase(True),
    "return_logprobs": FieldCase(True),
    "return_num_input_tokens": FieldCase(True),
    "return_num_output_tokens": FieldCase(True),
    "return_token_ids": FieldCase(True),
    "return_receipt": FieldCase(True),
    "strict": FieldCase(False),
}
assert set(FIELD_CASES) == set(NAMES.fields), "every field of the schema, and no other"
