"""A step as the CUDA kernels read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class StepArrays:
    """One step's columns on the device, by name: those of `_core.BatchLayout(config)`, padded to the sizes of
    a captured graph. cpp/include/quire/batch_columns.def says what they hold.

    Lists have all their room: the header says how many entries count. Seeds are int64, with the same bits.
    """

    def __init__(self, **columns: Tensor) -> None:
        vars(self).update(columns)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...

    @property
    def num_tokens(self) -> int:
        return self.token_ids.size(0)

    @property
    def num_sampled(self) -> int:
        return self.sample_rows.size(0)
