"""config.json, asked for its values by name and type. What is of a wrong type, and what changes the model and
was not asked for, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from quire.errors import UnsupportedModel, describe
from quire.field import INT32_MAX

# Keys of config.json, of whatever family, that change what a model computes: the values, beside null, with
# which they do not. A list has one for every layer. Keys that only add or drop tensors are not here: names
# and shapes of the checkpoint's tensors are compared with the family's.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # which tokens see which
    "alibi": (False,),
    "attention_chunk_size": (),
    "interleaved_sliding_window": (),
    "is_causal": (True,),
    "layer_types": ("full_attention",),
    "sliding_window": (),
    "use_bidirectional_attention": (False,),
    "use_sliding_window": (False,),
    # how attention scores are computed
    "attention_multiplier": (),
    "attention_scale": (),
    "attn_logit_softcapping": (),
    "attn_temperature_tuning": (False, 0),
    "clip_qkv": (),
    "llama_4_scaling_beta": (0,),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "query_pre_attn_scalar": (),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "softmax_scale": (),
    "use_logn_attn": (False,),
    "use_qk_norm": (False,),
    # positions
    "no_rope_layer_interval": (0,),
    "no_rope_layers": (1,),
    "partial_rotary_factor": (1.0,),
    "position_embedding_type": ("rope", "rotary"),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rope_pct": (1,),
    "rope_ratio": (1,),
    "rotary_pct": (1,),
    "use_dynamic_ntk": (False,),
    # scales and limits of what the layers pass on
    "attention_in_multiplier": (1,),
    "attention_out_multiplier": (1,),
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "embedding_multiplier_scale": (1,),
    "final_logit_softcapping": (),
    "key_multiplier": (1,),
    "lm_head_multiplier": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_multipliers": (1,),
    "mup_enabled": (False,),
    "output_multiplier_scale": (1,),
    "residual_multiplier": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "swiglu_alpha": (1.702,),
    "swiglu_limit": (),
    "use_mup": (False,),
    # the order of a layer's parts, and its activation
    "do_layer_norm_before": (True,),
    "apply_residual_connection_post_layernorm": (False,),
    "hidden_activation": ("silu", "swish"),
    "parallel_attn": (False,),
    "use_parallel_residual": (False,),
}

_TYPE_NAMES: Mapping[type, str] = {
    int: "an integer",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class ConfigReader:
    """Reads an object's keys and remembers which. An UnsupportedModel names file, key, value and what is
    allowed."""

    def __init__(
        self,
        file: Path,
        values: Mapping[str, Any],
        *,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ) -> None:
        """names: what a key that is asked for is called in the object, where not the same."""
        self.file = file
        self._prefix = prefix
        self._values = values
        self._names = names or {}
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there, if only with null."""
        return self._names.get(key, key) in self._values

    def path(self, key: str) -> str:
        """How errors call a key: its file, and where it is in it."""
        return f"{self.file}: {self._prefix}{self._names.get(key, key)}"

    def refuse(self, key: str, given: object, allowed: str) -> NoReturn:
        raise UnsupportedModel(f"{self.path(key)}: got {describe(given)}; allowed: {allowed}")

    def value(self, key: str) -> Any:
        """Whatever stands there; null where nothing does."""
        key = self._names.get(key, key)
        self._read.add(key)
        return self._values.get(key)

    def get(self, key: str, kind: type, *default: Any) -> Any:
        """The value, which must be of `kind`; absent and null give the default, or are refused without
        one."""
        value = self.value(key)
        if value is None:
            return default[0] if default else self.refuse(key, None, _TYPE_NAMES[kind])
        if type(value) is not kind:
            self.refuse(key, value, _TYPE_NAMES[kind])
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, bool, default))

    def count(self, key: str, *default: int, most: int = INT32_MAX) -> int:
        value = self.get(key, int, *default)
        if not 1 <= value <= most:
            self.refuse(key, value, f"an integer in [1, {most}]")
        return int(value)

    def number(self, key: str, *default: float, most: float) -> float:
        value = self.value(key)
        if value is None and default:
            return default[0]
        # NaN fails both comparisons.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            self.refuse(key, value, f"a number in (0, {most:g}]")
        return float(value)

    def optional_number(self, key: str, default: float | None, most: float = 1e6) -> float | None:
        """null is none; `default` where the key is not there."""
        if key in self and self.value(key) is None:
            return None
        return default if key not in self else self.number(key, most=most)

    def with_value(self, key: str, value: object) -> ConfigReader:
        """A copy in which `key` has another value."""
        return ConfigReader(self.file, {**self._values, key: value}, prefix=self._prefix, names=self._names)

    def renamed(self, names: Mapping[str, str]) -> ConfigReader:
        """A view whose keys are asked for by other names: asked for -> in the object."""
        reader = ConfigReader(self.file, self._values, prefix=self._prefix, names=names)
        reader._read = self._read
        return reader

    def inside(self, key: str) -> ConfigReader:
        """The object under a key; an empty one where there is none."""
        return ConfigReader(self.file, self.get(key, dict, {}), prefix=f"{self._prefix}{key}.")

    def refuse_objects(self, allowed: str) -> None:
        """Refuse the first value that is itself an object."""
        for key, value in self._values.items():
            if isinstance(value, dict):
                self.refuse(key, value, allowed)

    def refuse_unread(self) -> None:
        """Refuse the first key that changes what a model computes and that was not read."""
        for key, neutral in _NEUTRAL.items():
            value = self._values.get(key)
            if key in self._read or value is None:
                continue
            if not all(_is_one_of(item, neutral) for item in (value if isinstance(value, list) else [value])):
                self.refuse(key, value, ", ".join(map(describe, neutral)) or "null")


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    """1 and 1.0 are equal here, 1 and true are not."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)
