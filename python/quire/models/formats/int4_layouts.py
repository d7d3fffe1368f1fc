"""Turns four-bit weights as checkpoints store them into the one form that all of Quire reads.

That form: `weight` uint8 [out, in / 2], two columns in a byte, the even one in the low nibble; `scale`
[out, in / group]; `zero` uint8 [out, in / group], or None, which is 8. A weight is (q - zero) * scale. For
mxfp4 a nibble is an e2m1 code and `scale` holds e8m0 bytes, one for 32 columns.

Every function works on whatever device its input is on. What takes more than a byte for two numbers is done
by slices of outputs, so that a large tensor is never unpacked as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MXFP4_GROUP = 32  # columns that share a scale
_SYMMETRIC_ZERO = 8
_SLICE = 1024  # outputs that are unpacked at once
# What e2m1 codes stand for.
_E2M1 = tuple(sign * value for sign in (1, -1) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
# What e8m0 bytes stand for.
_E8M0 = (*(2.0 ** (byte - 127) for byte in range(255)), float("nan"))


def awq_weight(qweight: Tensor) -> Tensor:
    """qweight: int32 [in, out / 8], the eight outputs of an element in AWQ's order of nibbles."""
    even, odd = _bytes(qweight).view(qweight.size(0) // 2, 2, -1).unbind(1)  # inputs, [in / 2, out / 2] each
    low, high = (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
    return _awq_ordered(torch.stack((low, high), dim=-1)).t().contiguous()


def awq_zero(qzeros: Tensor) -> Tensor:
    """qzeros: int32 [in / group, out / 8], in AWQ's order of nibbles."""
    return _awq_ordered(_nibbles(_bytes(qzeros))).t().contiguous()


def gptq_weight(qweight: Tensor, columns: Tensor | None = None) -> Tensor:
    """qweight: int32 [in / 8, out], eight inputs in an element, the first in its lowest nibble.
    columns: [in], the input that is to be at each place; None: as they are."""
    return compressed_weight(qweight.t(), columns)


def gptq_zero(qzeros: Tensor, *, is_one_less: bool) -> Tensor:
    """qzeros: int32 [in / group, out / 8], the first output in the lowest nibble.
    is_one_less: they hold the zero points minus 1, and 15 for 0, as the first version of GPTQ's files has
    it."""
    zero = _nibbles(_bytes(qzeros)).t().contiguous()
    return (zero + 1) & 15 if is_one_less else zero


def groups_problem(g_idx: Tensor, group_size: int) -> str | None:
    """What is wrong with the groups of inputs, [in]; None where each has `group_size` of them."""
    num_groups = g_idx.numel() // group_size
    low, high = (int(bound) for bound in g_idx.aminmax())
    if low < 0 or high >= num_groups:
        return f"got groups in [{low}, {high}]; allowed: [0, {num_groups - 1}]"
    sizes = torch.bincount(g_idx, minlength=num_groups)
    group = int((sizes != group_size).int().argmax())
    got = int(sizes[group])
    return None if got == group_size else f"got {got} inputs in group {group}; allowed: {group_size}"


def columns_by_group(g_idx: Tensor) -> Tensor:
    """The order of inputs in which those of a group stand together, groups in order: [in] int32."""
    return torch.argsort(g_idx, stable=True).int()


def compressed_weight(weight_packed: Tensor, columns: Tensor | None = None) -> Tensor:
    """weight_packed of compressed-tensors: int32 [out, in / 8], eight inputs in an element, the first in its
    lowest nibble. Its numbers are stored plus 8, so that 8 is 0. columns: as in gptq_weight()."""
    weight = _bytes(weight_packed)
    if columns is None:
        return weight
    result = torch.empty_like(weight)
    for begin, end in _slices(weight.size(0)):
        result[begin:end] = _packed(_nibbles(weight[begin:end])[:, columns])
    return result


def compressed_zero(weight_zero_point: Tensor) -> Tensor:
    """weight_zero_point of compressed-tensors: int32 [out / 8, in / group], eight outputs in an element,
    stored plus 8 too."""
    return _nibbles(_bytes(weight_zero_point.t())).t().contiguous()


def mxfp4_weight(blocks: Tensor) -> Tensor:
    """blocks of gpt-oss: uint8 [..., out, in / 32, 16], of each two columns the first in the low nibble."""
    return blocks.flatten(-2)


def dequantize_int4(
    weight: Tensor, scale: Tensor, zero: Tensor | None = None, columns: Tensor | None = None
) -> Tensor:
    """The matrix [out, in] in the type of `scale`, each number computed in float32 and rounded once.

    columns: [in] int32, which input each column of `weight` is of; None: in order.
    """
    num_outputs, num_groups = scale.shape
    num_inputs = weight.size(1) * 2
    result = torch.empty(num_outputs, num_inputs, dtype=scale.dtype, device=scale.device)
    place = slice(None) if columns is None else columns.long()
    for begin, end in _slices(num_outputs):
        q = _nibbles(weight[begin:end]).view(end - begin, num_groups, -1).float()
        q -= _SYMMETRIC_ZERO if zero is None else zero[begin:end, :, None].float()
        q *= scale[begin:end, :, None].float()
        result[begin:end, place] = q.flatten(1).to(scale.dtype)
    return result


def dequantize_mxfp4(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [..., out, in]; every number is exact in bfloat16.

    weight: [..., out, in / 2] of e2m1 codes. scale: [..., out, in / 32] of e8m0 bytes.
    """
    values, powers = (torch.tensor(table, device=weight.device) for table in (_E2M1, _E8M0))
    # By bytes, of two numbers each: half the look-ups.
    pairs = values[_nibbles(torch.arange(256, dtype=torch.uint8, device=weight.device)[:, None]).long()]
    result = torch.empty(*weight.shape[:-1], weight.size(-1) * 2, dtype=dtype, device=weight.device)
    rows, weight, scale = (tensor.flatten(0, -2) for tensor in (result, weight, scale))
    for begin, end in _slices(rows.size(0)):
        numbers = pairs.index_select(0, weight[begin:end].flatten().int())
        factors = powers.index_select(0, scale[begin:end].flatten().int())
        rows[begin:end] = numbers.view(-1, MXFP4_GROUP).mul_(factors[:, None]).view(end - begin, -1)
    return result


def _slices(num_outputs: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, num_outputs, _SLICE):
        yield begin, min(begin + _SLICE, num_outputs)


def _bytes(words: Tensor) -> Tensor:
    """The four bytes of each int32, the lowest first: [rows, n] -> [rows, 4 n]."""
    # Flat in between: the stride of a last dimension of one element may be anything.
    return words.contiguous().flatten().view(torch.uint8).view(words.size(0), -1)


def _nibbles(packed: Tensor) -> Tensor:
    """Both halves of each byte, the low one first: [rows, n] -> [rows, 2 n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _packed(nibbles: Tensor) -> Tensor:
    """The inverse of _nibbles()."""
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4)


def _awq_ordered(nibbles: Tensor) -> Tensor:
    """What the nibbles of AWQ's elements hold, the lowest first, in the order of outputs: [rows, out]. The
    nibbles are of the outputs 0 2 4 6 1 3 5 7."""
    return nibbles.reshape(nibbles.size(0), -1, 2, 4).transpose(2, 3).flatten(1)
