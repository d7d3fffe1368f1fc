"""A checked request as input tensors of the model `generation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quire.sampling_params import NAMES, OPTION_FIELDS, RequestOptions

_NUMPY_TYPES = {
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_BOOL": np.bool_,
}

_RETURNS = tuple(name for name in OPTION_FIELDS if name.startswith("return_"))

Tensor = np.ndarray[Any, Any]


def generation_tensors(
    rows: Sequence[Sequence[int]],
    given: Mapping[str, Any],
    options: RequestOptions,
    *,
    texts: Sequence[str] = (),
    bad_word_ids: Sequence[Sequence[int]] = (),
    warnings: Sequence[str] = (),
    times: Mapping[str, int],
    vocabulary: str,
) -> dict[str, Tensor]:
    """Ids, the settings that the request gave, and how to answer. What asks for nothing is left out.

    rows: the ids of each prompt. given: sampling fields that the request gave. texts: the prompts, where they
    came as text. bad_word_ids: the field bad_words as ids. times: arrival_ns and tokenize_ns.
    vocabulary: whose ids they are (Tokenizer.vocabulary), so that generation refuses those of another one.
    """
    tensors: dict[str, Tensor] = {
        "input_ids": _ids(rows),  # [num_prompt_tokens]
        "row_lengths": np.asarray([len(row) for row in rows], np.int32),  # [num_rows]; for generation_unary
        "vocabulary": _strings([vocabulary]),
        "stream": np.asarray([options.stream]),
        "acknowledge": np.asarray([True]),
    }
    tensors |= {name: np.asarray([value], np.int64) for name, value in times.items()}
    if options.includes_prompt and texts:
        tensors["prompt_text"] = _strings(texts)
    if warnings:
        tensors["warnings"] = _strings(warnings)
    for name in _RETURNS:
        if getattr(options, name):
            tensors[name] = np.asarray([True])
    for name, value in given.items():
        tensors |= _field_tensors(name, value, bad_word_ids)
    return tensors


def _field_tensors(name: str, value: Any, bad_word_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """One field. An empty list asks for nothing, and Triton has no way to send one."""
    field = NAMES.fields[name]
    items = value if isinstance(value, tuple) else (value,)
    if field.stage == "prompt" or not items:
        return {}
    if name == "bad_words":
        lengths = np.asarray([len(ids) for ids in bad_word_ids], np.int32)
        return {"bad_word_ids": _ids(bad_word_ids), "bad_word_lengths": lengths}
    if name == "logit_bias":
        ids, biases = zip(*items, strict=True)
        return {"logit_bias_ids": np.asarray(ids, np.int32), "logit_bias": np.asarray(biases, np.float32)}
    if field.tensor_type == "TYPE_STRING":
        return {name: _strings(items)}
    return {name: np.asarray(items, _NUMPY_TYPES[field.tensor_type])}


def _ids(sequences: Sequence[Sequence[int]]) -> Tensor:
    return np.concatenate([np.asarray(ids, np.int32) for ids in sequences])


def _strings(texts: Sequence[str]) -> Tensor:
    return np.asarray([text.encode() for text in texts], np.object_)
