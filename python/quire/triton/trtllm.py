"""The inputs of TensorRT-LLM's ensemble, read as fields of ours.

What we do not do yet is accepted as long as it asks for nothing, since clients send every input with its
neutral value, and is refused by the client's own name otherwise. A field that the schema learns is honoured
here from then on. docs/clients.md says what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quire.errors import InvalidArgument, describe
from quire.field import INT32_MAX
from quire.sampling_params import NAMES
from quire.schema import Entry
from quire.triton.tensors import Tensors, read_list, read_single


@dataclass(frozen=True)
class Input:
    """One input: the field of ours that it means, and the values that ask for nothing."""

    field: str = ""
    neutral: tuple[object, ...] = ()
    is_list: bool = False


INPUTS = {
    "max_tokens": Input("max_tokens"),
    "min_tokens": Input("min_tokens"),
    "min_length": Input("min_tokens"),
    "temperature": Input("temperature"),
    "top_k": Input("top_k"),
    "top_p": Input("top_p"),
    "seed": Input("seed"),
    "random_seed": Input("seed"),
    "stop_words": Input("stop", is_list=True),
    "bad_words": Input("bad_words", ((),), is_list=True),
    "repetition_penalty": Input("repetition_penalty", (1,)),
    "presence_penalty": Input("presence_penalty", (0,)),
    "frequency_penalty": Input("frequency_penalty", (0,)),
    "num_return_sequences": Input("n", (1,)),
    "beam_width": Input(neutral=(1,)),
    "length_penalty": Input(neutral=(0, 1)),  # weighs beams
    "embedding_bias_words": Input(neutral=((),), is_list=True),
    "embedding_bias_weights": Input(neutral=((),), is_list=True),
    "return_log_probs": Input("return_logprobs", (False,)),
    "return_context_logits": Input(neutral=(False,)),
    "return_generation_logits": Input(neutral=(False,)),
    "return_perf_metrics": Input(neutral=(False,)),
    "stream": Input("stream"),
    "exclude_input_in_output": Input("exclude_input_in_output"),
    "return_num_input_tokens": Input("return_num_input_tokens"),
    "return_num_output_tokens": Input("return_num_output_tokens"),
    "return_finish_reason": Input("return_finish_reason"),  # ours: TensorRT-LLM's ensemble does not tell
    "end_id": Input(),
    "pad_id": Input(),
}


class TrtLlm:
    """Reads the tensors; a Dialect. `vocab_size`: what `end_id` must be less than, when known."""

    def __init__(self, vocab_size: int | None = None) -> None:
        self._max_id = (vocab_size or INT32_MAX + 1) - 1

    def read(self, tensors: Tensors) -> list[Entry]:
        given: list[Entry] = []
        for name, tensor in tensors.items():
            known = INPUTS.get(name)
            if known is None:
                raise NAMES.unknown(name)
            row = _row(tensor, name)
            value: Any = _list(row, name) if known.is_list else read_single(row, name)
            if name == "pad_id":
                continue  # nothing is padded
            if name == "end_id":
                given.append(self._end(value))
            elif known.field in NAMES.fields:
                if not (name == "top_p" and value == 0):  # 0 is TensorRT-LLM's "off"
                    given += _field(known.field, name, value)
                if name == "return_log_probs" and value:  # it also answers cum_log_probs
                    given += _field("return_cumulative_logprob", name, value)
            elif value not in known.neutral:
                allowed = " or ".join(describe(list(n) if isinstance(n, tuple) else n) for n in known.neutral)
                shown = list(value) if isinstance(value, tuple) else value
                raise InvalidArgument(name, describe(shown), f"{allowed} (others are not supported yet)")
        return given

    def defaults(self, fields: Mapping[str, Any]) -> list[Entry]:
        """TensorRT-LLM takes the likeliest token unless it is told how to sample, and samples from all tokens
        then; it does not read the checkpoint's own settings."""
        if not (fields.get("top_k") or fields.get("top_p") or "temperature" in fields):
            neutral = {"temperature": 0.0, "repetition_penalty": 1.0}
        else:
            neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        return [Entry(n, value, n, "default") for n, value in neutral.items() if n not in fields]

    def _end(self, value: int) -> Entry:
        if value == -1:
            return Entry("ignore_eos", True, "end_id", "input tensor")
        if not 0 <= value <= self._max_id:
            allowed = f"an id in [0, {self._max_id}], or -1 to ignore the model's own"
            raise InvalidArgument("end_id", describe(value), allowed)
        return Entry("stop_token_ids", (value,), "end_id", "input tensor")


def _row(tensor: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """What holds for every prompt of the batch: the first dimension is the batch."""
    rows = tensor.reshape(max(1, tensor.shape[0]), -1)
    first: np.ndarray[Any, Any] = rows[0]
    if any(row != first.tolist() for row in rows[1:].tolist()):
        raise InvalidArgument(name, "different values for the rows", "the same for every row")
    return first


def _list(tensor: Any, name: str) -> tuple[Any, ...]:
    """Without empty strings, which clients send for "none"."""
    return tuple(value for value in read_list(tensor, name) if value != "")


def _field(field: str, name: str, value: object) -> list[Entry]:
    """One checked field; errors call it by the client's `name`."""
    try:
        read = NAMES.read({field: value}, "input tensor")
    except InvalidArgument as error:
        raise InvalidArgument(name, error.given, error.allowed) from None
    return [dataclasses.replace(entry, name=name) for entry in read]
