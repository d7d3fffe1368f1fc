"""RoPE as config.json describes it, in both spellings and all kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quire.models.config_reader import ConfigReader
from quire.models.spec import RopeSpec

_MAX_THETA = 1e15
_MAX_FACTOR = 1e6
KINDS = ("default", "linear", "llama3", "longrope", "yarn")
# "dynamic" stretches what is longer than max_position_embeddings, and no context is.
ALIASES = {"dynamic": "default", "su": "longrope"}


def read_rope(
    config: ConfigReader,
    head_dim: int,
    max_positions: int,
    layer_type: str | None = None,
    *,
    theta: float,
    partial: float | None,
    has_scaling: bool,
    own: Sequence[str],
    kinds: Sequence[str],
    aliases: Mapping[str, str],
) -> RopeSpec:
    """`rope_theta` beside `rope_scaling`, or everything inside `rope_parameters`, which may have an object
    for each type of layer. theta, partial: where it says nothing; partial None: the family has none."""
    is_new = config.value("rope_parameters") not in (None, {})
    scaling = config.inside("rope_parameters" if is_new else "rope_scaling")
    if is_new and layer_type is not None and layer_type in scaling:
        scaling = scaling.inside(layer_type)
    if not is_new and not has_scaling:
        scaling = config.inside("")
    for key in own:
        scaling.value(key)
    scaling.refuse_objects("one RoPE for all layers")
    theta = config.number("rope_theta", theta, most=_MAX_THETA)
    theta = scaling.number("rope_theta", theta, most=_MAX_THETA)
    if partial is not None:
        partial = config.number("partial_rotary_factor", partial, most=1.0)
        partial = scaling.number("partial_rotary_factor", partial, most=1.0)
    kind_key = "rope_type" if "rope_type" in scaling else "type"
    given = scaling.get(kind_key, str, "default")
    kind = aliases.get(given, given)
    if kind not in kinds:
        scaling.refuse(kind_key, given, ", ".join([*kinds, *aliases]))
    scaling.refuse_unread()
    rotary_dim = head_dim if partial is None else int(head_dim * partial)
    if rotary_dim % 2 or rotary_dim == 0:
        config.refuse(
            "partial_rotary_factor", partial, f"an even number of the {head_dim} dimensions of a head"
        )
    rope = RopeSpec(theta=theta, rotary_dim=None if rotary_dim == head_dim else rotary_dim)
    key = "original_max_position_embeddings"
    original = scaling.count(key, config.count(key, max_positions))
    if kind == "linear":
        return replace(rope, kind=kind, factor=scaling.number("factor", most=_MAX_FACTOR))
    if kind == "llama3":
        return _llama3(replace(rope, original_max_position_embeddings=original), scaling)
    if kind in ("longrope", "yarn"):
        if original < 2:
            scaling.refuse(key, original, "at least 2")
        if theta <= 1:
            scaling.refuse("rope_theta", theta, "a number above 1")
        factor = scaling.number("factor", max_positions / original, most=_MAX_FACTOR)
        rope = replace(rope, factor=factor, original_max_position_embeddings=original)
        return _longrope(rope, scaling, rotary_dim) if kind == "longrope" else _yarn(rope, scaling)
    return rope


def _llama3(rope: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    low = scaling.number("low_freq_factor", most=_MAX_FACTOR)
    high = scaling.number("high_freq_factor", most=_MAX_FACTOR)
    if high <= low:
        scaling.refuse("high_freq_factor", high, f"a number above low_freq_factor ({low})")
    factor = scaling.number("factor", most=_MAX_FACTOR)
    return replace(rope, kind="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high)


def _longrope(rope: RopeSpec, scaling: ConfigReader, rotary_dim: int) -> RopeSpec:
    growth = math.log(rope.factor) / math.log(rope.original_max_position_embeddings)
    usual = 1.0 if rope.factor <= 1 else math.sqrt(1 + growth)
    return replace(
        rope,
        kind="longrope",
        attention_factor=scaling.number("attention_factor", usual, most=_MAX_FACTOR),
        short_factor=_factors(scaling, "short_factor", rotary_dim // 2),
        long_factor=_factors(scaling, "long_factor", rotary_dim // 2),
    )


def _yarn(rope: RopeSpec, scaling: ConfigReader) -> RopeSpec:
    return replace(
        rope,
        kind="yarn",
        beta_fast=scaling.number("beta_fast", 32.0, most=_MAX_FACTOR),
        beta_slow=scaling.number("beta_slow", 1.0, most=_MAX_FACTOR),
        truncates=scaling.flag("truncate", True),
        attention_factor=_yarn_attention_factor(scaling, rope.factor),
    )


def _factors(scaling: ConfigReader, key: str, size: int) -> tuple[float, ...]:
    factors = scaling.get(key, list)
    is_numbers = all(type(factor) in (int, float) and factor > 0 for factor in factors)
    if not is_numbers or len(factors) != size:
        scaling.refuse(key, factors, f"{size} numbers above 0")
    return tuple(map(float, factors))


def _yarn_attention_factor(scaling: ConfigReader, factor: float) -> float:
    """As transformers has it: how much sharper attention has to be over a longer context."""

    def sharpness(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale = scaling.value("mscale") and scaling.number("mscale", most=_MAX_FACTOR)
    of_all = scaling.value("mscale_all_dim") and scaling.number("mscale_all_dim", most=_MAX_FACTOR)
    usual = sharpness(mscale) / sharpness(of_all) if mscale and of_all else sharpness(1.0)
    return scaling.number("attention_factor", usual, most=_MAX_FACTOR)
