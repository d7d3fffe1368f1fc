"""Our GEMMs on a GPU: weights `[out_size, in_size]` as their kernels want them described; the tensors stay as
they are. On the CPU torch does them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quire._tensor_checks import DTYPE_IDS, address, check, dtype_id, has_cuda_kernels, stream_of
from quire.ops.float8 import SCALED_COLUMNS, QuantizedRows
from quire.ops.four_bits import rows_by_group

_FLOAT8, _INT4, _MXFP4 = 1, 2, 3  # quire::WeightFormat

if has_cuda_kernels():
    from quire import _cuda

    MAX_SKINNY_ROWS = _cuda.SKINNY_GEMM_MAX_ROWS
    MAX_WIDENED_ROWS = _cuda.WIDENED_GEMM_MAX_ROWS


class _Weight:
    """silu_mul: the result is SiLU(gate) * up, `[num_rows, out_size / 2]`; gate is the weight's first
    half. dtype: of the result; None: the weight's."""

    def __init__(self, weight: Tensor, *, silu_mul: bool = False, dtype: torch.dtype | None = None) -> None:
        self.tensor, self.silu_mul = weight, silu_mul
        self.dtype = dtype or weight.dtype
        self.out_size = weight.size(0) // 2 if silu_mul else weight.size(0)
        self._description: dict[str, Any] = {
            "data": weight.data_ptr(),
            "n": weight.size(0),
            "k": _in_size(weight),
            "dtype": dtype_id("weight", weight) if dtype is None else DTYPE_IDS[dtype],
            "silu_mul": silu_mul,
        }

    def _out(self, out: Tensor | None, num_rows: int) -> Tensor:
        if out is not None:
            return out
        return torch.empty((num_rows, self.out_size), dtype=self.dtype, device=self.tensor.device)


class SkinnyWeight(_Weight):
    """For few rows.

    is_invariant: a row of the result has the same bits in any number of rows. scale: float32, of a float8
    weight, whose columns lie as `float8_columns` puts them: `[out_size]`, or `[out_size, blocks]` of each 128
    columns; dtype: of x and the result.

    Of a weight of four bits, uint8 `[out_size, in_size / 2]`, whose columns lie as `four_bit_columns` puts
    them, scale is of the type of x and the result and lies as `by_group` puts it: of each 32, 64, 128 or all
    columns. zero: int16, 0 to 15, laid out as scale; None: all 8. is_mxfp4: elements are e2m1, without zero,
    and groups of 32.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        silu_mul: bool = False,
        is_invariant: bool = False,
        scale: Tensor | None = None,
        zero: Tensor | None = None,
        is_mxfp4: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        is_four_bit = weight.dtype == torch.uint8
        if is_four_bit and scale is not None:
            dtype_id("scale", scale)
            dtype = scale.dtype
        super().__init__(weight, silu_mul=silu_mul, dtype=dtype)
        self._is_invariant = is_invariant
        self._scale, self._zero = scale, zero
        if scale is not None and is_four_bit:
            self._description |= _groups(weight, scale, zero, is_mxfp4=is_mxfp4)
        elif scale is not None:
            self._description |= _float8_scales(weight, scale)
        self._handle = _cuda.SkinnyGemmWeight(**self._description)

    def __call__(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """x: `[num_rows, in_size]`, at most MAX_SKINNY_ROWS rows, or MAX_WIDENED_ROWS where the
        weight has a scale; they may be apart. rows: int32; then row i
        of the result is that of x[rows[i]]. settings: overlaps, is_invariant, tuning, for tests."""
        num_rows = x.size(0) if rows is None else rows.size(0)
        out = self._out(out, num_rows)
        _cuda.skinny_gemm(
            weight=self._handle,
            num_rows=num_rows,
            x=x.data_ptr(),
            stride_x=x.stride(0),
            out=out.data_ptr(),
            stride_out=out.stride(0),
            bias=address(bias),
            rows=address(rows),
            num_x_rows=x.size(0),
            stream=stream_of(x),
            **{"is_invariant": self._is_invariant, **settings},
        )
        return out

    def widened(
        self, x: Tensor, bias: Tensor | None = None, out: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """As __call__(), for more rows, of a weight with scales. Their number decides how k is cut. settings:
        overlaps, tuning, for tests."""
        out = self._out(out, x.size(0))
        _cuda.widened_gemm(
            weight=self._handle,
            num_rows=x.size(0),
            x=x.data_ptr(),
            stride_x=x.stride(0),
            out=out.data_ptr(),
            stride_out=out.stride(0),
            bias=address(bias),
            stream=stream_of(x),
            **settings,
        )
        return out

    def product(self, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Any number of rows: by the GEMM for few, or by the one for more. With is_invariant, and where
        out's columns are no multiple of 8, by the one for few, a part at a time."""
        if x.size(0) > MAX_WIDENED_ROWS and not self._is_invariant and self.out_size % 8 == 0:
            self.widened(x, bias, out)
            return
        for i in range(0, x.size(0), MAX_WIDENED_ROWS):
            self(x[i : i + MAX_WIDENED_ROWS], bias, out[i : i + MAX_WIDENED_ROWS])


class WideWeight(_Weight):
    """For many rows. Out's columns and in_size: multiples of 8; in_size at least 64.

    scale: float32, of a float8 weight, whose columns lie as `float8_columns` puts them and whose in_size is a
    multiple of 16, at least 128: `[out_size]`, or for split() `[out_size, blocks]` of each 128 columns. It
    multiplies rows that are quantised alike; dtype: of the result.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        silu_mul: bool = False,
        scale: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(weight, silu_mul=silu_mul, dtype=dtype)
        self.scale = scale
        if scale is not None:
            num_scales = _num_scales(weight, scale)
            if num_scales > 1:
                self._description["num_scales"] = num_scales
            self._description["scale"] = scale.data_ptr()
        self._handle = _cuda.WideGemmWeight(**self._description)

    @staticmethod
    def takes(weight: Tensor, *, silu_mul: bool = False) -> bool:
        out_size, in_size = weight.shape
        vector = 16 // weight.element_size()
        return out_size % (16 if silu_mul else 8) == 0 and in_size % vector == 0 and in_size >= 8 * vector

    def __call__(
        self,
        x: Tensor | QuantizedRows,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """x: `[num_rows, in_size]`, rows may be apart; quantised, where the weight has a scale. settings:
        overlaps, tuning, for tests."""
        values, scales = _parts_of(x)
        out = self._out(out, values.size(0))
        _cuda.wide_gemm(**self._arguments(values, scales, bias, out), **settings)
        return out

    def split(
        self,
        x: Tensor | QuantizedRows,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """For some 65 to 256 rows, of float8 fewer: k is cut, and how depends on the rows. silu_mul: float8
        and up to 64 rows."""
        values, scales = _parts_of(x)
        out = self._out(out, values.size(0))
        _cuda.split_gemm(**self._arguments(values, scales, bias, out), **settings)
        return out

    def _arguments(
        self, x: Tensor, x_scale: Tensor | None, bias: Tensor | None, out: Tensor
    ) -> dict[str, Any]:
        return {
            "weight": self._handle,
            "num_rows": x.size(0),
            "x": x.data_ptr(),
            "stride_x": x.stride(0),
            "out": out.data_ptr(),
            "stride_out": out.stride(0),
            "bias": address(bias),
            "x_scale": address(x_scale),
            "stream": stream_of(x),
        }


def _in_size(weight: Tensor) -> int:
    return weight.size(1) * (2 if weight.dtype == torch.uint8 else 1)


def _groups(weight: Tensor, scale: Tensor, zero: Tensor | None, *, is_mxfp4: bool) -> dict[str, int]:
    out_size = weight.size(0)
    check("weight", weight, torch.uint8, tuple(weight.shape), "out_size, in_size / 2", "cuda")
    shape, names = (scale.size(0), rows_by_group(out_size)), "groups, out_size rounded up to 64s"
    check("scale", scale, scale.dtype, shape, names, "cuda")
    if zero is not None:
        check("zero", zero, torch.int16, shape, names, "cuda")
    return {
        "format": _MXFP4 if is_mxfp4 else _INT4,
        "scales": scale.data_ptr(),
        "num_scales": scale.size(0),
        "zeros": address(zero),
    }


def _parts_of(x: Tensor | QuantizedRows) -> tuple[Tensor, Tensor | None]:
    """The elements, and their scales where they are quantised."""
    return (x.values, x.scales) if isinstance(x, QuantizedRows) else (x, None)


def _float8_scales(weight: Tensor, scale: Tensor) -> dict[str, int]:
    return {
        "format": _FLOAT8,
        "scales": scale.data_ptr(),
        "num_scales": _num_scales(weight, scale),
    }


def _num_scales(weight: Tensor, scale: Tensor) -> int:
    """How many scales a row of a float8 weight has."""
    out_size, in_size = weight.shape
    device = weight.device.type
    check("weight", weight, torch.float8_e4m3fn, (out_size, in_size), "out_size, in_size", device)
    if scale.ndim == 1:
        check("scale", scale, torch.float32, (out_size,), "out_size", device)
        return 1
    blocks = -(-in_size // SCALED_COLUMNS)
    check("scale", scale, torch.float32, (out_size, blocks), "out_size, blocks of in_size", device)
    return blocks
