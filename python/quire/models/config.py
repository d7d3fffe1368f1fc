"""What a checkpoint's ``config.json`` says about the model, checked and in our own names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.errors import ModelNotFound
from quire.field import INT32_MAX
from quire.model_files import read_json_object
from quire.models.config_reader import ConfigReader
from quire.models.families import FAMILIES
from quire.models.parameters import ParameterTable
from quire.models.spec import ModelSpec
from quire.models.weight_formats import PLAIN, WeightFormat

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model: what it computes, and what else its folder says of it."""

    folder: Path
    spec: ModelSpec
    weight_format: WeightFormat
    checkpoint_dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        return self.spec.max_positions

    def parameters(self, dtype: torch.dtype) -> ParameterTable:
        """For activations of this type."""
        return ParameterTable(spec=self.spec, weight_format=self.weight_format, dtype=dtype)


def load_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` (and the stop ids of ``generation_config.json``); raise ModelError for what we
    cannot run."""
    file = folder / "config.json"
    try:
        config = ConfigReader(file, read_json_object(file))
    except FileNotFoundError:
        raise ModelNotFound(f"{file}: no such file; a Hugging Face model folder has one") from None
    architectures = config.get("architectures", list)
    family = FAMILIES.get(architectures[0]) if architectures and isinstance(architectures[0], str) else None
    if family is None:
        config.refuse("architectures", architectures, ", ".join(FAMILIES))
    quantization = config.value("quantization_config")
    if quantization is not None:
        is_named = isinstance(quantization, dict) and "quant_method" in quantization
        method = quantization["quant_method"] if is_named else quantization
        config.refuse("quantization_config", method, "none (unquantized weights)")
    dtype = config.get("dtype", str, None) or config.get("torch_dtype", str, "float32")
    if dtype not in DTYPES:
        config.refuse("dtype", dtype, ", ".join(DTYPES))
    spec = family(config)
    config.refuse_unread()
    return ModelConfig(
        folder=folder,
        spec=spec,
        weight_format=PLAIN,
        checkpoint_dtype=dtype,
        bos_token_id=_bos_token_id(config),
        eos_token_ids=_eos_token_ids(config, folder / "generation_config.json"),
    )


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
