"""The inputs of TensorRT-LLM's ensemble and of its model tensorrt_llm, read as fields of ours.

Most are names that the schema knows. What we do not do yet is accepted as long as it asks for nothing, since
clients send every input with its neutral value, and is refused by the client's own name otherwise.
docs/clients.md says what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from quire.errors import InvalidArgument, describe
from quire.field import INT32_MAX
from quire.sampling_params import NAMES
from quire.schema import Entry
from quire.triton.tensors import Tensor, Tensors, read_list, read_single

# What turns sampling parameters off, as not given.
_OFF_AT_0 = ("top_p", "runtime_top_p", "top_k", "runtime_top_k")

# Inputs that mean something we do not do yet, with the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "beam_width": (1,),
    "length_penalty": (0, 1),  # weighs beams
    "len_penalty": (0, 1),
    "embedding_bias_words": ((),),
    "embedding_bias_weights": ((),),
    "return_context_logits": (False,),
    "return_generation_logits": (False,),
    "return_perf_metrics": (False,),
}


# Names that clients of Triton's vLLM backend do not have.
NAMES_OF_ITS_OWN = frozenset(
    {*NEUTRAL, "end_id", "pad_id", "min_length", "prompt_embedding_table", "prompt_vocab_size"}
) - {"length_penalty"}


class TrtLlm:
    """Reads the tensors; a Dialect. `vocab_size`: what `end_id` must be less than, when known."""

    def __init__(self, vocab_size: int | None = None) -> None:
        self._max_id = (vocab_size or INT32_MAX + 1) - 1

    is_separate = True
    ignored_parameters = frozenset({"Streaming"})  # NVIDIA's client has it beside the tensor streaming

    def read(self, tensors: Tensors) -> list[Entry]:
        given: list[Entry] = []
        for name, tensor in tensors.items():
            row = _row(tensor, name)
            if name in NEUTRAL:
                _require_neutral(name, row)
            elif name == "end_id":
                given.append(self._end(read_single(row, name)))
            elif name == "pad_id":
                read_single(row, name)  # nothing is padded
            elif name == "min_length":
                given += _field("min_tokens", name, read_single(row, name))
            else:
                is_list = NAMES.find(name).is_list
                value: Any = _list(row, name) if is_list else read_single(row, name)
                if not (name in _OFF_AT_0 and value == 0):
                    given += NAMES.read({name: value}, "input tensor")
                if name == "return_log_probs" and value:  # it also answers cum_log_probs
                    given += _field("return_cumulative_logprob", name, value)
        return given

    def complete(self, entries: list[Entry]) -> list[Entry]:
        """TensorRT-LLM takes the likeliest token, at any temperature, unless top_k or top_p tells it to
        sample, and samples from all tokens then; it does not read the checkpoint's own settings. A stream
        never has the prompt, whatever the request says."""
        entries = [entry for entry in entries if (entry.field, entry.value) != ("top_k", 0)]
        fields = {entry.field: entry.value for entry in entries}
        if fields.get("stream"):
            entries = [entry for entry in entries if entry.field != "exclude_input_in_output"]
        neutral: dict[str, object] = {"repetition_penalty": 1.0}
        if fields.keys() & {"top_k", "top_p"}:
            neutral |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        elif "temperature" in fields:
            neutral |= {"top_k": 1}
        else:
            neutral |= {"temperature": 0.0}
        return entries + [Entry(n, value, n, "default") for n, value in neutral.items() if n not in fields]

    def prompts_of_ids(self, tensors: Tensors) -> list[Tensor]:
        """A row of input_ids for each prompt, of which input_lengths says how many ids count. NVIDIA's
        benchmark sends random ids of 31 bits, which TensorRT-LLM does not check: here they are taken modulo
        the vocabulary's size."""
        ids = tensors["input_ids"].astype(np.int64)
        rows = ids.reshape(max(1, ids.shape[0]), -1)
        lengths = tensors.get("input_lengths", np.full(len(rows), rows.shape[1])).reshape(-1).tolist()
        if len(lengths) != len(rows):
            raise InvalidArgument(
                "input_lengths", f"{len(lengths)} values", f"{len(rows)}, one for each prompt"
            )
        for length in lengths:
            if not 1 <= length <= rows.shape[1]:
                allowed = f"1 to {rows.shape[1]}, the ids in a row of input_ids"
                raise InvalidArgument("input_lengths", str(length), allowed)
        known = np.where(rows < 0, rows, rows % (self._max_id + 1))
        return [row[:length] for row, length in zip(known, lengths, strict=True)]

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


def _require_neutral(name: str, row: np.ndarray[Any, Any]) -> None:
    neutral = NEUTRAL[name]
    value: Any = _list(row, name) if () in neutral else read_single(row, name)
    if value not in neutral:
        allowed = " or ".join(describe(each) for each in neutral)
        raise InvalidArgument(name, describe(value), f"{allowed} (others are not supported yet)")


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
