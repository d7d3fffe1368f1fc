"""Where the activations of a step lie on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.models.spec import ModelSpec


class Rows:
    """The first rows of every buffer. Made once per count, since a view costs as much as a small op."""

    def __init__(self, buffers: Activations, num_rows: int) -> None:
        self.residual = buffers.residual[:num_rows]
        self.hidden = buffers.hidden[:num_rows]
        self.attention = buffers.attention[:num_rows]
        self.mlp = buffers.mlp[:num_rows]


class Activations:
    """Buffers of the largest step, [max_num_tokens, width] each."""

    def __init__(
        self, spec: ModelSpec, dtype: torch.dtype, max_num_tokens: int, max_num_sampled: int
    ) -> None:
        def buffer(width: int) -> Tensor:
            return torch.zeros(max_num_tokens, width, dtype=dtype)

        self.residual = buffer(spec.hidden_size)
        self.hidden = buffer(spec.hidden_size)
        self.attention = buffer(spec.attention.q_size)
        self.mlp = buffer(spec.mlp.intermediate_size)
        self._rows: dict[int, Rows] = {}
        self._num_kept = max_num_sampled

    def rows(self, num_rows: int) -> Rows:
        rows = self._rows.get(num_rows)
        if rows is None:
            rows = Rows(self, num_rows)
            if num_rows <= self._num_kept:  # decode steps; the sizes of prompts are many and their steps long
                self._rows[num_rows] = rows
        return rows

    def select(self, rows: Rows, index: Tensor) -> Rows:
        """The first rows, holding `attention` and `residual` of the rows in `index`; `rows` may be of other
        buffers."""
        chosen = self.rows(index.shape[0])
        # Copies: the rows overlap.
        chosen.attention.copy_(rows.attention.index_select(0, index))
        chosen.residual.copy_(rows.residual.index_select(0, index))
        return chosen

    @staticmethod
    def num_bytes(spec: ModelSpec, itemsize: int, max_num_tokens: int, max_num_sampled: int) -> int:
        """What the buffers, and the GEMMs' outputs beside them, take at most."""
        buffers = 2 * spec.hidden_size + spec.attention.q_size + spec.mlp.intermediate_size
        outputs = max(spec.attention.qkv.out_size, spec.mlp.gate_up.out_size) + spec.hidden_size
        return (max_num_tokens * (buffers + outputs) + max_num_sampled * spec.vocab_size) * itemsize
