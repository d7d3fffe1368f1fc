"""Weights of four bits, with a scale and a zero point for groups of a row's numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from quire.errors import UnsupportedModel
from quire.models.formats.int4_layouts import (
    awq_weight,
    awq_zero,
    columns_by_group,
    compressed_weight,
    compressed_zero,
    dequantize_int4,
    gptq_weight,
    gptq_zero,
    groups_problem,
)
from quire.models.formats.plain import PLAIN
from quire.models.linear import GateUp, Linear
from quire.models.sources import Stored
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import TensorType

log = logging.getLogger("quire.engine")

ROW = -1  # as a group's size: the whole row
_KERNELS = "quire.models.cuda.int4_linear"
_KERNEL_GROUPS = (32, 64, 128, ROW)


@dataclass(frozen=True, kw_only=True)
class Int4:
    """(q - zero) * scale, as `int4_layouts.py` has it.

    has_zero: else it is 8. has_columns: the inputs of a group are not neighbours.
    """

    group_size: int
    has_zero: bool
    has_columns: bool = False

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
        is_linear = isinstance(projection, LinearSpec)
        return is_linear and self.group_size in _KERNEL_GROUPS and find_spec(_KERNELS) is not None

    def linear(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> Linear:
        # Not at the top: the CUDA kernels may not be built.
        from quire.models.cuda.int4_linear import (  # type: ignore[import-not-found,unused-ignore]
            CudaInt4Linear,
        )

        if not _have_one_order(tensors):
            return PLAIN.linear(spec, self._plain(spec, tensors), is_invariant=is_invariant)
        linear: Linear = CudaInt4Linear(**self._arguments(spec, tensors), is_invariant=is_invariant)
        return linear

    def gate_up(self, spec: LinearSpec, tensors: Mapping[str, Tensor], *, is_invariant: bool) -> GateUp:
        from quire.models.cuda.int4_linear import (  # type: ignore[import-not-found,unused-ignore]
            CudaInt4GateUp,
        )

        if not _have_one_order(tensors):
            return PLAIN.gate_up(spec, self._plain(spec, tensors), is_invariant=is_invariant)
        gate_up: GateUp = CudaInt4GateUp(**self._arguments(spec, tensors), is_invariant=is_invariant)
        return gate_up

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


def _have_one_order(tensors: Mapping[str, Tensor]) -> bool:
    columns = tensors.get("columns")
    return columns is None or bool((columns == columns[0]).all())


@dataclass(frozen=True, kw_only=True)
class AwqStorage:
    """What AutoAWQ writes (`version: gemm`). setting: what says the size of groups, for errors."""

    group_size: int
    setting: str

    @property
    def title(self) -> str:
        return self.format.title

    @property
    def format(self) -> Int4:
        return Int4(group_size=self.group_size, has_zero=True)

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        sizes = _Sizes.of(part, in_size, self.group_size, self.setting)
        root = weight.removesuffix("weight")
        return (
            Stored(name=f"{root}qweight", shape=(in_size, sizes.out_words), dtypes=_WORDS),
            _transposed_scales(f"{root}scales", sizes),
            Stored(name=f"{root}qzeros", shape=(sizes.groups, sizes.out_words), dtypes=_WORDS),
        )

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        qweight, scales, qzeros = stored
        return awq_weight(qweight), scales, awq_zero(qzeros)


@dataclass(frozen=True, kw_only=True)
class GptqStorage:
    """What AutoGPTQ and GPTQModel write.

    is_symmetric: every zero point is 8. has_columns: groups are of inputs in the order of their activations.
    is_one_less: zero points are stored minus 1.
    """

    group_size: int
    is_symmetric: bool
    has_columns: bool
    is_one_less: bool
    setting: str

    @property
    def title(self) -> str:
        return self.format.title

    @property
    def format(self) -> Int4:
        return Int4(group_size=self.group_size, has_zero=not self.is_symmetric, has_columns=self.has_columns)

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        sizes = _Sizes.of(part, in_size, self.group_size, self.setting)
        root = weight.removesuffix("weight")
        found = (
            Stored(name=f"{root}qweight", shape=(sizes.in_words, part.out_size), dtypes=_WORDS),
            _transposed_scales(f"{root}scales", sizes),
            Stored(
                name=f"{root}qzeros",
                shape=(sizes.groups, sizes.out_words),
                dtypes=_WORDS,
                problem=self._zeros_problem if self.is_symmetric else None,
            ),
        )
        return (*found, _group_indices(f"{root}g_idx", sizes)) if self.has_columns else found

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        qweight, scales, qzeros, *g_idx = stored
        columns = [columns_by_group(each) for each in g_idx]
        zero = [] if self.is_symmetric else [gptq_zero(qzeros, is_one_less=self.is_one_less)]
        return gptq_weight(qweight, *columns), scales, *zero, *columns

    def _zeros_problem(self, qzeros: Tensor) -> str | None:
        zero = gptq_zero(qzeros, is_one_less=self.is_one_less)
        others = zero[zero != 8]
        return f"got a zero point of {int(others[0])}; allowed: 8, as sym is true" if len(others) else None


@dataclass(frozen=True, kw_only=True)
class PackedStorage:
    """What compressed-tensors calls pack-quantized; its members are those of GptqStorage."""

    group_size: int
    is_symmetric: bool
    has_columns: bool
    setting: str

    @property
    def title(self) -> str:
        return self.format.title

    @property
    def format(self) -> Int4:
        return Int4(group_size=self.group_size, has_zero=not self.is_symmetric, has_columns=self.has_columns)

    def stored(self, weight: str, part: LinearPart, in_size: int) -> tuple[Stored, ...]:
        sizes = _Sizes.of(part, in_size, self.group_size, self.setting)
        found = [
            Stored(name=f"{weight}_packed", shape=(part.out_size, sizes.in_words), dtypes=_WORDS),
            Stored(name=f"{weight}_scale", shape=(part.out_size, sizes.groups), problem=scale_problem),
        ]
        if not self.is_symmetric:
            shape = (sizes.out_words, sizes.groups)
            found.append(Stored(name=f"{weight}_zero_point", shape=shape, dtypes=_WORDS))
        if self.has_columns:
            found.append(_group_indices(f"{weight}_g_idx", sizes))
        return tuple(found)

    def convert(self, *stored: Tensor) -> tuple[Tensor, ...]:
        packed, scale, *rest = stored
        zero = [] if self.is_symmetric else [compressed_zero(rest.pop(0))]
        columns = [columns_by_group(each) for each in rest]
        return compressed_weight(packed, *columns), scale, *zero, *columns


_WORDS = ("I32",)  # eight numbers in each


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """How many words and groups a projection has along its axes."""

    inputs: int
    outputs: int
    group_size: int

    @classmethod
    def of(cls, part: LinearPart, in_size: int, group_size: int, setting: str) -> _Sizes:
        """Raises UnsupportedModel for what words or groups do not divide."""
        size = in_size if group_size == ROW else group_size
        if in_size % size:
            allowed = f"a divisor of {in_size}, the inputs of {part.name}"
            raise UnsupportedModel(f"{setting}: got {group_size}; allowed: {allowed}")
        for number, what in ((in_size, "inputs"), (part.out_size, "outputs")):
            if number % 8:
                raise UnsupportedModel(f"{part.name}: got {number} {what}; allowed: a multiple of 8")
        return cls(inputs=in_size, outputs=part.out_size, group_size=size)

    @property
    def groups(self) -> int:
        return self.inputs // self.group_size

    @property
    def in_words(self) -> int:
        return self.inputs // 8

    @property
    def out_words(self) -> int:
        return self.outputs // 8


def scale_problem(scale: Tensor) -> str | None:
    """Scales may be negative, or 0 for a group of zeros."""
    is_finite = scale.isfinite()
    return None if is_finite.all() else f"got {scale[~is_finite][0].item()}; allowed: finite numbers"


def _transposed_scales(name: str, sizes: _Sizes) -> Stored:
    shape = (sizes.groups, sizes.outputs)
    return Stored(name=name, shape=shape, is_transposed=True, problem=scale_problem)


def _group_indices(name: str, sizes: _Sizes) -> Stored:
    problem = partial(groups_problem, group_size=sizes.group_size)
    return Stored(name=name, shape=(sizes.inputs,), dtypes=_WORDS, problem=problem)
