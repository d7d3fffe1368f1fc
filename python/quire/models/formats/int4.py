"""Weights of four bits, with a scale and a zero point for groups of a row's numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.models.formats.int4_layouts import dequantize_int4
from quire.models.formats.plain import PLAIN
from quire.models.linear import GateUp, Linear
from quire.models.spec import ExpertsSpec, LinearSpec
from quire.models.weight_formats import TensorType

log = logging.getLogger("quire.engine")

ROW = -1  # as a group's size: the whole row
_KERNEL_GROUPS = (32, 64, 128, ROW)


@dataclass(frozen=True, kw_only=True)
class Int4:
    """(q - zero) * scale, laid out as `int4_layouts.py` says.

    has_zero: else it is 8. has_columns: the inputs of a group are not neighbours.
    """

    group_size: int
    has_zero: bool
    has_columns: bool = False
    takes_quantized = False

    @property
    def title(self) -> str:
        """For the log."""
        return (
            "int4, a scale for each row" if self.group_size == ROW else f"int4, groups of {self.group_size}"
        )

    def tensors(self, out_size: int, in_size: int, dtype: torch.dtype) -> Mapping[str, TensorType]:
        groups = (out_size, 1 if self.group_size == ROW else in_size // self.group_size)
        found = {
            "weight": TensorType((out_size, in_size // 2), torch.uint8),
            "scale": TensorType(groups, dtype),
        }
        if self.has_zero:
            found["zero"] = TensorType(groups, torch.uint8)
        if self.has_columns:
            found["columns"] = TensorType((in_size,), torch.int32, is_of_part=True)
        return found

    def dequantize(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Columns are in the order of inputs again."""
        weight, scale, *rest = tensors
        zero = rest.pop(0) if self.has_zero else None
        columns = rest.pop(0) if self.has_columns else None
        return dequantize_int4(weight, scale.to(dtype), zero, columns)

    def fill_dummy(self, tensors: Sequence[Tensor], generator: torch.Generator) -> None:
        weight, scale, *rest = tensors
        weight.random_(0, 256, generator=generator)
        scale.fill_(0.02 / 4.6)  # 4.6: the standard deviation of 0 to 15
        if self.has_zero:
            rest.pop(0).fill_(8)
        for columns in rest:
            columns.copy_(torch.arange(columns.size(-1)))

    def has_kernels(self, projection: LinearSpec | ExpertsSpec) -> bool:
        return self.group_size in _KERNEL_GROUPS and are_multiplied_in_four_bits(projection)

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.int4_linear import CudaInt4Linear

        if not _have_one_order(tensors):
            return PLAIN.linear(spec, self._plain(spec, tensors), is_invariant=is_invariant)
        return CudaInt4Linear(**self._arguments(spec, tensors), is_invariant=is_invariant)

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        from quire.models.cuda.int4_linear import CudaInt4GateUp

        if not _have_one_order(tensors):
            return PLAIN.gate_up(spec, self._plain(spec, tensors), is_invariant=is_invariant)
        return CudaInt4GateUp(**self._arguments(spec, tensors), is_invariant=is_invariant)

    def _arguments(self, spec: LinearSpec, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the kernels get: of the order of columns, which all parts share, one; none where it is the
        usual one."""
        arguments: dict[str, Any] = dict(tensors)
        if self.has_columns:
            columns = arguments.pop("columns")[0]
            if not torch.equal(
                columns, torch.arange(spec.in_size, dtype=columns.dtype, device=columns.device)
            ):
                arguments["columns"] = columns
        return arguments | {"group_size": spec.in_size if self.group_size == ROW else self.group_size}

    def _plain(self, spec: LinearSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dequantised weight of parts whose columns are in different orders."""
        log.warning(
            "%s: dequantised: the projections of one matrix have columns in different orders",
            spec.parts[0].name,
        )
        roles = self.tensors(spec.out_size, spec.in_size, tensors["scale"].dtype)
        sizes = [part.out_size for part in spec.parts]
        rows = zip(
            *(
                tensors[role].unbind(0) if kind.is_of_part else torch.split(tensors[role], sizes)
                for role, kind in roles.items()
            ),
            strict=True,
        )
        weight = torch.cat([self.dequantize(each, tensors["scale"].dtype) for each in rows])
        return {"weight": weight, **{role: each for role, each in tensors.items() if role not in roles}}


def are_multiplied_in_four_bits(projection: LinearSpec | ExpertsSpec) -> bool:
    """Whether kernels take such a projection, of int4 or mxfp4: rows of whole 16-byte pieces."""
    return isinstance(projection, LinearSpec) and projection.in_size % 32 == 0 and projection.in_size >= 256


def _have_one_order(tensors: Mapping[str, Tensor]) -> bool:
    columns = tensors.get("columns")
    return columns is None or bool((columns == columns[0]).all())
