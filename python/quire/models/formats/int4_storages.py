"""How checkpoints store four-bit weights with scales for groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from quire.errors import UnsupportedModel
from quire.models.formats.int4 import ROW, Int4
from quire.models.formats.int4_layouts import (
    awq_weight,
    awq_zero,
    columns_by_group,
    compressed_weight,
    compressed_zero,
    gptq_weight,
    gptq_zero,
    groups_problem,
)
from quire.models.sources import Stored
from quire.models.spec import LinearPart

_WORDS = ("I32",)  # eight numbers in each


@dataclass(frozen=True, kw_only=True)
class _Int4Storage:
    """is_symmetric: every zero point is 8. has_columns: the inputs of a group are not neighbours.
    setting: what says the size of groups, for errors."""

    group_size: int
    is_symmetric: bool = False
    has_columns: bool = False
    setting: str

    @property
    def title(self) -> str:
        return self.format.title

    @property
    def format(self) -> Int4:
        return Int4(group_size=self.group_size, has_zero=not self.is_symmetric, has_columns=self.has_columns)


class AwqStorage(_Int4Storage):
    """What AutoAWQ writes (`version: gemm`)."""

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
class GptqStorage(_Int4Storage):
    """What AutoGPTQ and GPTQModel write. is_one_less: zero points are stored minus 1."""

    is_one_less: bool

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


class PackedStorage(_Int4Storage):
    """What compressed-tensors calls pack-quantized."""

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
