"""The tensor `request`, which a tokenizer gives to the model `generation` beside `input_ids`.

`encode_request` is for tokenizer stages of one's own. One that gives nothing but ids needs no `request`:
generation then reads the request parameters itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire import _core
from quire.errors import InvalidArgument
from quire.request_options import RequestOptions
from quire.sampling_params import ENGINE_FIELDS, NAMES, OPTION_FIELDS, SamplingParams
from quire.schema import merge

# Fields that generation knows; the others end in the tokenizer.
_OPTIONS = tuple(name for name in OPTION_FIELDS if name not in ("exclude_input_in_output", "strict"))
_FIELDS = (*(name for name in ENGINE_FIELDS if name != "bad_words"), *_OPTIONS)


def encode_request(
    *,
    bad_word_ids: Sequence[Sequence[int]] = (),
    prompt_text: str = "",
    warnings: Sequence[str] = (),
    vocabulary: str = "",
    acknowledge: bool = True,
    **fields: Any,
) -> bytes:
    """The bytes of the tensor `request` (UINT8 [-1]) for one prompt.

    fields: request fields by any of their names (docs/request_fields.md); None means "not given".
    bad_word_ids: the words of `bad_words` as ids, which need a tokenizer.
    prompt_text: stands before the answer. warnings: for the client.
    vocabulary: `Tokenizer.vocabulary(model)`, so that generation refuses ids of another one; "": not told.
    acknowledge: a detokenizer follows, as in the ensemble; False for a client that calls generation itself
    (where chunk is the one output that is asked for, one always follows).

    Raises InvalidArgument that names the field."""
    given = merge(NAMES.read(fields))
    for entry in given.entries.values():
        if entry.field not in _FIELDS:
            allowed = ", ".join((*_FIELDS, "bad_word_ids"))
            raise InvalidArgument(entry.name, "a field that only a tokenizer can honour", allowed)
    given.make(SamplingParams)  # fields that must fit together
    try:
        return encode_checked(
            given.values,
            given.make(RequestOptions),
            bad_word_ids=bad_word_ids,
            prompt_text=[prompt_text] if prompt_text else (),
            warnings=warnings,
            vocabulary=vocabulary,
            acknowledge=acknowledge,
        )
    except _core.InvalidArgument as error:
        raise InvalidArgument.from_core(error) from None


def encode_checked(given: Mapping[str, Any], options: RequestOptions, **rest: Any) -> bytes:
    """Encodes checked fields. given: those of SamplingParams that the request gave. rest: what else the
    tensor has (cpp/include/quire/request_tensor.h). Empty lists ask for nothing and are left out."""
    values = {name: given[name] for name in _FIELDS if name in given}
    values |= {name: True for name in _OPTIONS if getattr(options, name)}
    return _core.encode_request({n: v for n, v in {**values, **rest}.items() if v not in ("", (), [])})
