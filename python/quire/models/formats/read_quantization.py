"""What the files of a checkpoint, and the setting `quantization`, say of how its weights are quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quire.errors import InvalidArgument, describe
from quire.model_files import read_json_object
from quire.model_folder import CONFIG, HF_QUANT_CONFIG, QUANT_CONFIG, QUANTIZE_CONFIG
from quire.models.config_reader import ConfigReader
from quire.models.formats.compressed_tensors import compressed_tensors
from quire.models.formats.fp8 import Fp8OnLoad
from quire.models.formats.fp8_checkpoints import fp8, modelopt
from quire.models.formats.int4_checkpoints import awq, gptq, mxfp4
from quire.models.formats.quantization import UNQUANTIZED, Quantization, Rule

# By the name in quant_method.
_METHODS: Mapping[str, Callable[[ConfigReader], Quantization]] = {
    "compressed-tensors": compressed_tensors,
    "fp8": fp8,
    "modelopt": modelopt,
    "awq": awq,
    "gptq": gptq,
    "mxfp4": mxfp4,
}

# What vLLM calls the kernels for a method.
_SAME_METHODS: Mapping[str, str] = {"awq_marlin": "awq", "gptq_marlin": "gptq"}

# Where a description may be: the file, the key in it ("": the whole), and the method where it names none.
_PLACES = (
    (CONFIG, "quantization_config", ""),
    (CONFIG, "compression_config", "compressed-tensors"),
    (HF_QUANT_CONFIG, "quantization", "modelopt"),
    (QUANTIZE_CONFIG, "", "gptq"),
    (QUANT_CONFIG, "", "awq"),
)

_FP8_ON_LOAD = Quantization(method="fp8", rules=(Rule(storage=Fp8OnLoad(), kinds=frozenset({"inner"})),))


def read_quantization(config: ConfigReader, setting: str | None) -> Quantization:
    """config: config.json, beside which other files may say it. setting: what the checkpoint must be, or is
    made while it is loaded; None: whatever it is."""
    found = _of_the_files(config)
    wanted = _SAME_METHODS.get(setting, setting) if setting else None
    if wanted in (None, found.method):
        return found
    folder = config.file.parent
    if found.method is not None:
        allowed = f"null or {describe(found.method)}, the method of the checkpoint {folder}"
        raise InvalidArgument("quantization", describe(setting), allowed)
    if wanted != "fp8":
        allowed = f'null or "fp8": the checkpoint {folder} is not quantised'
        raise InvalidArgument("quantization", describe(setting), allowed)
    return _FP8_ON_LOAD


def _of_the_files(config: ConfigReader) -> Quantization:
    """The first description counts."""
    for file, key, default in _PLACES:
        reader = config
        if file != CONFIG:
            try:
                path = config.file.with_name(file)
                reader = ConfigReader(path, read_json_object(path))
            except FileNotFoundError:
                continue
        if key and reader.value(key) is None:
            continue
        reader = reader.inside(key) if key else reader
        method = default or reader.value("quant_method")
        if not isinstance(method, str) or method not in _METHODS:
            allowed = f"{', '.join(map(describe, _METHODS))}, or weights that are not quantised"
            reader.refuse("quant_method", method, allowed)
        return _METHODS[method](reader)
    return UNQUANTIZED
