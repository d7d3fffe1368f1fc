"""fp8 as DeepSeek, Qwen and Mistral describe it, and as ModelOpt does."""

from __future__ import annotations

from collections.abc import Mapping

from quire.errors import describe
from quire.models.config_reader import ConfigReader
from quire.models.formats.fp8 import Fp8Storage, check_block_size
from quire.models.formats.patterns import inside, read_names, wildcard
from quire.models.formats.quantization import Quantization, Rule


def fp8(reader: ConfigReader) -> Quantization:
    """Blocks of 128 x 128, or one scale for a tensor. Scales of activations are not used."""
    if (fmt := reader.get("fmt", str, "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        reader.refuse("fmt", fmt, '"e4m3"')
    if reader.value("weight_block_size") is None:
        storage = Fp8Storage("tensor", suffixes=("_scale", "_scale_inv"))
    else:
        check_block_size(reader, "weight_block_size")
        storage = Fp8Storage("block", suffixes=("_scale_inv",))
    plain = [read_names(reader, key, inside) for key in ("modules_to_not_convert", "ignored_layers")]
    return Quantization(
        method="fp8",
        rules=(Rule(storage=storage, kinds=frozenset({"inner"})),),
        plain=(*plain[0], *plain[1]),
    )


_MODELOPT: Mapping[str, Fp8Storage] = {
    "FP8": Fp8Storage("tensor"),
    "FP8_PER_CHANNEL_PER_TOKEN": Fp8Storage("channel"),
    "FP8_PB_WO": Fp8Storage("block"),
}


def modelopt(reader: ConfigReader) -> Quantization:
    """ModelOpt lists the projections that are plain, the head too."""
    algorithm = reader.value("quant_algo")
    if algorithm is not None and algorithm not in _MODELOPT:
        reader.refuse("quant_algo", algorithm, ", ".join(map(describe, [*_MODELOPT, None])))
    plain = [read_names(reader, key, wildcard) for key in ("exclude_modules", "ignore")]
    storages = () if algorithm is None else (_MODELOPT[algorithm],)
    return Quantization(
        method="modelopt",
        rules=tuple(Rule(storage=storage, kinds=frozenset({"inner", "head"})) for storage in storages),
        plain=(*plain[0], *plain[1]),
    )
