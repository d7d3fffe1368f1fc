"""Which storage each projection of a checkpoint has."""

from __future__ import annotations

from dataclasses import dataclass

from quire.models.formats.plain import PLAIN_STORAGE
from quire.models.spec import ProjectionKind
from quire.models.weight_formats import Storage


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a checkpoint is quantised.

    method: by vLLM's name; None: not at all. ignored: patterns of names of tensors that may be present and
    that nothing reads.
    """

    method: str | None = None
    ignored: tuple[str, ...] = ()

    def storage_of(self, name: str, kind: ProjectionKind) -> Storage:
        """How the projection of this name is stored; "{}" in it is any expert."""
        return PLAIN_STORAGE


UNQUANTIZED = Quantization()
