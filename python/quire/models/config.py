"""What a checkpoint's ``config.json`` says about the model, checked and in our own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quire.errors import ModelNotFound, UnsupportedModel, describe
from quire.model_files import read_json_object
from quire.schema import INT32_MAX

ARCHITECTURES = ("LlamaForCausalLM",)
DTYPES = ("float32", "bfloat16", "float16")
HEAD_DIMS = range(32, 257, 8)  # what the attention kernels take

# Far beyond every known model: a larger number is a mistake, and would cost memory before it is found.
_MAX_LAYERS = 1000
_MAX_HEADS = 1 << 14
_MAX_WIDTH = 1 << 20  # hidden_size, intermediate_size
_MAX_VOCABULARY = 1 << 24
_MAX_THETA = 1e15
_MAX_FACTOR = 1e6


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base wavelength and how it is stretched for long contexts.

    ``kind`` "default" uses theta only, "linear" divides all frequencies by ``factor``, "llama3" divides the
    low ones by ``factor``, keeps the high ones and blends between the two limits.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one Llama model. ``num_*`` counts, ``*_size`` widths."""

    folder: Path
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    checkpoint_dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def q_size(self) -> int:
        return self.num_q_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def load_model_config(folder: Path) -> ModelConfig:
    """Read ``config.json`` (and the stop ids of ``generation_config.json``); raise ModelError for what we
    cannot run."""
    reader = _Reader(folder / "config.json")
    architectures = reader.get("architectures", list)
    if not architectures or architectures[0] not in ARCHITECTURES:
        reader.refuse("architectures", architectures, describe(ARCHITECTURES))
    activation = reader.get("hidden_act", str, "silu")
    if activation != "silu":
        reader.refuse("hidden_act", activation, describe("silu"))
    quantization = reader.values.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        reader.refuse("quantization_config", method, "none (unquantized weights)")

    hidden_size = reader.count("hidden_size", most=_MAX_WIDTH)
    num_q_heads = reader.count("num_attention_heads", most=_MAX_HEADS)
    num_kv_heads = reader.count("num_key_value_heads", num_q_heads, most=_MAX_HEADS)
    if num_q_heads % num_kv_heads:
        reader.refuse(
            "num_key_value_heads", num_kv_heads, f"a divisor of num_attention_heads ({num_q_heads})"
        )
    head_dim = reader.count("head_dim", max(1, hidden_size // num_q_heads))
    if head_dim not in HEAD_DIMS:
        allowed = f"a multiple of {HEAD_DIMS.step} in [{HEAD_DIMS.start}, {HEAD_DIMS.stop - 1}]"
        reader.refuse("head_dim", head_dim, allowed)
    max_position_embeddings = reader.count("max_position_embeddings")
    dtype = reader.get("dtype", str, None) or reader.get("torch_dtype", str, "float32")
    if dtype not in DTYPES:
        reader.refuse("dtype", dtype, ", ".join(DTYPES))

    return ModelConfig(
        folder=folder,
        architecture=architectures[0],
        vocab_size=reader.count("vocab_size", most=_MAX_VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=reader.count("intermediate_size", most=_MAX_WIDTH),
        num_layers=reader.count("num_hidden_layers", most=_MAX_LAYERS),
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6, most=1.0),
        rope=_rope(reader, max_position_embeddings),
        tie_word_embeddings=reader.get("tie_word_embeddings", bool, False),
        attention_bias=reader.get("attention_bias", bool, False),
        mlp_bias=reader.get("mlp_bias", bool, False),
        checkpoint_dtype=dtype,
        bos_token_id=_bos_token_id(reader),
        eos_token_ids=_eos_token_ids(reader, folder / "generation_config.json"),
    )


def _rope(reader: _Reader, max_position_embeddings: int) -> RopeConfig:
    """Both spellings: ``rope_theta`` beside ``rope_scaling``, or everything inside ``rope_parameters``."""
    key = "rope_parameters" if reader.values.get("rope_parameters") else "rope_scaling"
    values = reader.get(key, dict, None) or {}
    scaling = _Reader(reader.file, values, prefix=f"{key}.")
    theta = scaling.number(
        "rope_theta", reader.number("rope_theta", 10000.0, most=_MAX_THETA), most=_MAX_THETA
    )
    kind_key = "rope_type" if "rope_type" in values else "type"
    kind = scaling.get(kind_key, str, "default")
    if scaling.number("partial_rotary_factor", 1.0, most=1.0) != 1.0:
        scaling.refuse("partial_rotary_factor", values["partial_rotary_factor"], "1.0")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=scaling.number("factor", most=_MAX_FACTOR))
    if kind == "llama3":
        low = scaling.number("low_freq_factor", most=_MAX_FACTOR)
        high = scaling.number("high_freq_factor", most=_MAX_FACTOR)
        if high <= low:
            scaling.refuse("high_freq_factor", high, f"a number above low_freq_factor ({low})")
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=scaling.number("factor", most=_MAX_FACTOR),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=scaling.count(
                "original_max_position_embeddings", max_position_embeddings
            ),
        )
    return scaling.refuse(kind_key, kind, "default, linear, llama3")


def _bos_token_id(reader: _Reader) -> int | None:
    value: int | None = reader.get("bos_token_id", int, None)
    if value is not None and not 0 <= value <= INT32_MAX:
        reader.refuse("bos_token_id", value, "a token id")
    return value


def _eos_token_ids(reader: _Reader, generation_config: Path) -> tuple[int, ...]:
    """The ids that end a sequence: what ``generation_config.json`` says wins, as in transformers."""
    for source in (_Reader(generation_config, optional=True), reader):
        given = source.values.get("eos_token_id")
        if given is None:
            continue
        ids = given if isinstance(given, list) else [given]
        ids = [int(i) if isinstance(i, float) and i.is_integer() else i for i in ids]
        if not all(type(i) is int and 0 <= i <= INT32_MAX for i in ids):
            source.refuse("eos_token_id", ids, "a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))
    return ()


class _Reader:
    """A JSON object whose values are asked for by name and type; a wrong one is an UnsupportedModel that
    names it."""

    def __init__(
        self,
        file: Path,
        values: Mapping[str, Any] | None = None,
        *,
        prefix: str = "",
        optional: bool = False,
    ) -> None:
        self.file = file
        self.prefix = prefix
        self.values: Mapping[str, Any] = values if values is not None else self._read(optional)

    def _read(self, optional: bool) -> dict[str, Any]:
        try:
            return read_json_object(self.file)
        except FileNotFoundError:
            if optional:
                return {}
            raise ModelNotFound(f"{self.file}: no such file; a Hugging Face model folder has one") from None

    def refuse(self, key: str, given: object, allowed: str) -> NoReturn:
        raise UnsupportedModel(f"{self.file}: {self.prefix}{key}: got {describe(given)}; allowed: {allowed}")

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """The value, which must be of `kind`; absent and null give the default, or are refused without
        one."""
        value = self.values.get(key)
        if value is None:
            return default[0] if default else self.refuse(key, None, _TYPE_NAMES[kind])
        if type(value) is not kind:
            self.refuse(key, value, _TYPE_NAMES[kind])
        return value

    def count(self, key: str, *default: int, most: int = INT32_MAX) -> int:
        value = self.get(key, int, *default)
        if not 1 <= value <= most:
            self.refuse(key, value, f"an integer in [1, {most}]")
        return int(value)

    def number(self, key: str, *default: float, most: float) -> float:
        value = self.values.get(key)
        if value is None and default:
            return default[0]
        # NaN fails both comparisons.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            self.refuse(key, value, f"a number in (0, {most:g}]")
        return float(value)


_TYPE_NAMES: Mapping[type, str] = {
    int: "an integer",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
