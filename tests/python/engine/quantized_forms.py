"""Forms of quantised checkpoints: how each of their matrices is stored, and what config.json says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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


def exact(matrix: Tensor, group_size: int, is_symmetric: bool, groups: Tensor | None = None) -> Rounded:
    """Scales that are the same numbers in every type."""
    result = round_to_int4(matrix, group_size, is_symmetric, groups=groups)
    return replace(result, scale=result.scale.bfloat16().half())


def shuffled(matrix: Tensor, group_size: int, is_symmetric: bool) -> Rounded:
    """The inputs of a group are no neighbours."""
    generator = torch.Generator().manual_seed(matrix.size(1))
    groups = torch.randperm(matrix.size(1), generator=generator) // group_size
    return exact(matrix, group_size, is_symmetric, groups)


def _stored(packed: Mapping[str, Tensor], values: Tensor) -> Stored:
    return Stored({f".{name}": tensor for name, tensor in packed.items()}, values)


GROUP = 32
INT4_FORMS: dict[str, Form] = {
    "AWQ": awq(GROUP, exact),
    "AWQ, rows": awq(-1, exact, version="GEMM"),
    "GPTQ": gptq(GROUP, exact),
    "GPTQ, rows": gptq(-1, exact, desc_act=True),
    "GPTQ with zero points": gptq(GROUP, exact, is_symmetric=False),
    "GPTQ version 2": gptq(GROUP, exact, is_symmetric=False, version=2, checkpoint_format="gptq_v2"),
    "GPTQ desc_act, groups of neighbours": gptq(GROUP, exact, desc_act=True),
    "GPTQ act-order": gptq(GROUP, shuffled, desc_act=True),
    "compressed-tensors": packed_int4(GROUP, exact),
    "compressed-tensors with zero points": packed_int4(GROUP, exact, is_symmetric=False),
    "compressed-tensors channel": packed_int4(-1, exact),
    "compressed-tensors act-order": packed_int4(GROUP, shuffled, is_symmetric=False, actorder="group"),
    "compressed-tensors mxfp4": packed_mxfp4(),
}
