"""What the log says of a model's quantised weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from quire.model_folder import listed
from quire.models.formats.plain import PLAIN
from quire.models.parameters import ParameterTable
from quire.models.spec import ExpertsSpec, LinearPart, LinearSpec
from quire.models.weight_formats import TensorType


def describe_formats(table: ParameterTable) -> str | None:
    """How many projections have which format, and which are plain; None where all are."""
    counts: Counter[str] = Counter()
    plain = []
    for projection, part in _parts(table):
        storage = table.storage_of(part.name)
        if storage.format == PLAIN:
            plain.append(part.name.replace("{}", "*"))
        else:
            counts[storage.title] += projection.num_experts if isinstance(projection, ExpertsSpec) else 1
    if not counts:
        return None
    found = ", ".join(f"{count} projections {title}" for title, count in counts.items())
    return f"weights ({table.quantization.method}): {found}; plain: {listed(plain)}"


def describe_dequantised(table: ParameterTable) -> str | None:
    """What is dequantised while it is loaded, for want of kernels, and what that costs; None: nothing."""
    counts: Counter[str] = Counter()
    stored_bytes = held_bytes = 0
    for projection, part in _parts(table):
        storage = table.storage_of(part.name)
        if storage.format == PLAIN or table.format_of(projection) != PLAIN:
            continue
        sizes = part.out_size, projection.in_size, table.dtype
        experts = projection.num_experts if isinstance(projection, ExpertsSpec) else 1
        counts[storage.title] += experts
        stored_bytes += experts * _num_bytes(storage.format.tensors(*sizes))
        held_bytes += experts * _num_bytes(PLAIN.tensors(*sizes))
    if not counts:
        return None
    found = ", ".join(f"{count} projections {title}" for title, count in counts.items())
    dtype = str(table.dtype).removeprefix("torch.")
    costs = f"{held_bytes / (1 << 20):.1f} MiB instead of {stored_bytes / (1 << 20):.1f}"
    return f"weights are dequantised to {dtype} while they are loaded, {costs}: {found}"


def _parts(table: ParameterTable) -> Iterator[tuple[LinearSpec | ExpertsSpec, LinearPart]]:
    layers = (projection for layer in table.spec.layers for projection in layer.projections)
    for projection in (table.spec.head, *layers):
        for part in projection.parts:
            yield projection, part


def _num_bytes(tensors: Mapping[str, TensorType]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in tensors.values())
