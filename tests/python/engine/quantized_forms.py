"""Forms of quantised checkpoints: how each of their matrices is stored, and what config.json says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from four_bits import (
    Rounded,
    pack_awq,
    pack_compressed,
    pack_gptq,
    pack_mxfp4,
    round_to_int4,
    round_to_mxfp4,
)
from quantized_checkpoints import Stored, fp8_block, fp8_channel
from torch import Tensor

Round = Callable[[Tensor, int, bool], Rounded]  # a matrix, the size of groups, whether zero points are all 8


class Form(NamedTuple):
    stored_as: Callable[[Tensor], Stored]
    config: dict[str, Any]  # quantization_config


def awq(group_size: int, rounded: Round = round_to_int4, **config: Any) -> Form:
    def stored_as(matrix: Tensor) -> Stored:
        result = rounded(matrix, group_size, False)
        return _stored(pack_awq(result), result.matrix(torch.float32))

    described = {"bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}
    return Form(stored_as, {"quant_method": "awq"} | described | config)


def gptq(
    group_size: int,
    rounded: Round = round_to_int4,
    *,
    is_symmetric: bool = True,
    version: int = 1,
    **config: Any,
) -> Form:
    def stored_as(matrix: Tensor) -> Stored:
        result = rounded(matrix, group_size, is_symmetric)
        return _stored(pack_gptq(result, version=version), result.matrix(torch.float32))

    described = {"bits": 4, "group_size": group_size, "sym": is_symmetric, "desc_act": False}
    return Form(stored_as, {"quant_method": "gptq"} | described | config)


def packed_int4(
    group_size: int, rounded: Round = round_to_int4, *, is_symmetric: bool = True, **weights: Any
) -> Form:
    """compressed-tensors' pack-quantized."""

    def stored_as(matrix: Tensor) -> Stored:
        result = rounded(matrix, group_size, is_symmetric)
        packed = pack_compressed(result, is_symmetric=is_symmetric)
        if "actorder" in weights:
            packed["weight_g_idx"] = result.groups.int()
        return _stored(packed, result.matrix(torch.float32))

    described = {"num_bits": 4, "type": "int", "symmetric": is_symmetric}
    groups = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    return Form(stored_as, compressed("pack-quantized", **described | groups | weights))


def packed_mxfp4() -> Form:
    """compressed-tensors' mxfp4-pack-quantized."""

    def stored_as(matrix: Tensor) -> Stored:
        result = round_to_mxfp4(matrix)
        return _stored(pack_mxfp4(result), result.matrix(torch.float32))

    return Form(stored_as, compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32))


def fp8_channels() -> Form:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    return Form(fp8_channel, compressed("float-quantized", **weights))


def fp8_blocks() -> Form:
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
    return Form(fp8_block, compressed("float-quantized", **weights))


def compressed(stored_as: str, **weights: Any) -> dict[str, Any]:
    """What compressed-tensors writes where all projections but the head are stored alike."""
    return {
        "quant_method": "compressed-tensors",
        "format": stored_as,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def _stored(packed: Mapping[str, Tensor], values: Tensor) -> Stored:
    return Stored({f".{name}": tensor for name, tensor in packed.items()}, values)
