"""What a checkpoint's ``config.json`` says about the model, checked and in our own names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.errors import ModelNotFound, UnsupportedModel
from quire.field import INT32_MAX
from quire.model_files import read_json_object
from quire.models.checkpoint import has_other_head
from quire.models.config_reader import ConfigReader
from quire.models.families import FAMILIES, Family
from quire.models.formats.quantization import Quantization
from quire.models.formats.read_quantization import read_quantization
from quire.models.parameters import ParameterTable
from quire.models.spec import ModelSpec

# What names of architectures end with.
_ENDING = re.compile("ForCausalLM|LMHeadModel")

_UNTIED = (
    "tie_word_embeddings: got true, but the checkpoint has a head that is not the embedding: that head is "
    "used, as transformers 5 does"
)

_CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model: what it computes, and what else its folder says of it."""

    folder: Path
    spec: ModelSpec
    quantization: Quantization
    checkpoint_dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    warnings: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.spec.max_positions

    def parameters(self, dtype: torch.dtype, device: torch.device = _CPU) -> ParameterTable:
        """For activations of this type, on a device of this type."""
        return ParameterTable(spec=self.spec, quantization=self.quantization, dtype=dtype, device=device)


def load_model_config(folder: Path, quantization: str | None = None) -> ModelConfig:
    """Read ``config.json`` (and the stop ids of ``generation_config.json``); raise ModelError for what we
    cannot run, and InvalidArgument for a setting `quantization` that contradicts it."""
    file = folder / "config.json"
    try:
        config = ConfigReader(file, _of_the_language_model(read_json_object(file)))
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file; a Hugging Face model folder has one") from None
    family = _family(config)
    found = read_quantization(config, quantization)
    dtype = config.get("dtype", str, None) or config.get("torch_dtype", str, "float32")
    if dtype not in DTYPES:
        config.refuse("dtype", dtype, ", ".join(DTYPES))
    spec = family(config)
    config.refuse_unread()
    untied = _untied(config, family, spec, found)
    model = ModelConfig(
        folder=folder,
        spec=untied or spec,
        quantization=found,
        checkpoint_dtype=dtype,
        bos_token_id=_bos_token_id(config),
        eos_token_ids=_eos_token_ids(config, folder / "generation_config.json"),
        warnings=(f"{file}: {_UNTIED}",) if untied else (),
    )
    if found.method is not None:
        tuple(model.parameters(torch.float32))  # whose sizes a format may not have
    return model


def _of_the_language_model(values: dict[str, Any]) -> dict[str, Any]:
    """config.json of a multimodal model has its language model's apart; what that leaves out may stand
    outside. Where the text is computed in another way than a family's, its model_type is another, too."""
    text = values.get("text_config")
    if not isinstance(text, dict) or _by_model_type(text.get("model_type")) is None:
        return values
    shared = ("bos_token_id", "eos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
    outside = {key: values[key] for key in (*shared, "quantization_config") if key in values}
    return outside | text | {"architectures": None}


def _by_model_type(model_type: object) -> str | None:
    """The architecture whose name begins with it."""
    if not isinstance(model_type, str):
        return None
    beginning = model_type.replace("_", "").removesuffix("text")
    return next((name for name in FAMILIES if _ENDING.sub("", name).lower() == beginning), None)


def _family(config: ConfigReader) -> Family:
    """By the architecture's name, whatever its capitals; where there is none by model_type."""
    given = config.get("architectures", list, [])
    first = given[0] if given else _by_model_type(config.value("model_type"))
    names = {name.lower(): name for name in FAMILIES}
    family = FAMILIES.get(names.get(first.lower(), "")) if isinstance(first, str) else None
    if family is None:
        config.refuse("architectures", config.value("architectures"), ", ".join(FAMILIES))
    return family


def _untied(
    config: ConfigReader, family: Family, spec: ModelSpec, quantization: Quantization
) -> ModelSpec | None:
    """The model with a head of its own, where config.json ties it to the embedding and the checkpoint has
    another one."""
    if not spec.is_tied:
        return None
    try:
        untied = family(config.with_value("tie_word_embeddings", False))
    except UnsupportedModel:
        return None
    table = ParameterTable(spec=untied, quantization=quantization, dtype=torch.float32, device=_CPU)
    return untied if has_other_head(config.file.parent, table) else None


def _bos_token_id(config: ConfigReader) -> int | None:
    value: int | None = config.get("bos_token_id", int, None)
    if value is not None and not 0 <= value <= INT32_MAX:
        config.refuse("bos_token_id", value, "a token id")
    return value


def _eos_token_ids(config: ConfigReader, generation_config: Path) -> tuple[int, ...]:
    """The ids that end a sequence: what ``generation_config.json`` says wins, as in transformers."""
    try:
        values: dict[str, Any] = read_json_object(generation_config)
    except FileNotFoundError:
        values = {}
    for source in (ConfigReader(generation_config, values), config):
        given = source.value("eos_token_id")
        if given is None:
            continue
        ids = given if isinstance(given, list) else [given]
        ids = [int(i) if isinstance(i, float) and i.is_integer() else i for i in ids]
        if not all(type(i) is int and 0 <= i <= INT32_MAX for i in ids):
            source.refuse("eos_token_id", ids, "a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))
    return ()
