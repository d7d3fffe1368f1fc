"""Llama on a CPU: weights as oneDNN wants them, and one forward pass over a mixed batch.

GEMMs are torch's, everything between them is ours (`quire.ops`). Projections that read the same input are one
matrix. What lies between two GEMMs goes into buffers of the largest step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops
from quire.models.config import ModelConfig
from quire.models.linear import Linear
from quire.models.rope import cos_sin
from quire.models.weights import LlamaWeights


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
        self, config: ModelConfig, dtype: torch.dtype, max_num_tokens: int, max_num_sampled: int
    ) -> None:
        def buffer(num_rows: int, width: int) -> Tensor:
            return torch.zeros(num_rows, width, dtype=dtype)

        self.residual = buffer(max_num_tokens, config.hidden_size)
        self.hidden = buffer(max_num_tokens, config.hidden_size)
        self.attention = buffer(max_num_tokens, config.q_size)
        self.mlp = buffer(max_num_tokens, config.intermediate_size)
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
    def num_bytes(config: ModelConfig, itemsize: int, max_num_tokens: int, max_num_sampled: int) -> int:
        """What the buffers, and the GEMMs' outputs beside them, take at most."""
        buffers = 2 * config.hidden_size + config.q_size + config.intermediate_size
        outputs = max(config.q_size + 2 * config.kv_size, 2 * config.intermediate_size) + config.hidden_size
        return (max_num_tokens * (buffers + outputs) + max_num_sampled * config.vocab_size) * itemsize


class Llama(LlamaWeights[Linear, Linear]):
    """Weights of one model on a CPU, and the forward pass."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, max_model_len: int) -> None:
        def linear(in_size: int, out_size: int, bias: bool) -> Linear:
            return Linear(in_size, out_size, dtype, bias=bias)

        super().__init__(config, dtype, torch.device("cpu"), linear, linear)
        self.softmax_scale = config.head_dim**-0.5
        self.rope = ops.RopeTable(*cos_sin(config.rope, config.head_dim, max_model_len))
        hidden, qkv = config.hidden_size, config.q_size + 2 * config.kv_size
        self.num_largest_weights = max(
            hidden * qkv, config.q_size * hidden, 2 * hidden * config.intermediate_size
        )

    def pack(self) -> None:
        """Once the weights are there: lay them out for the GEMMs, one at a time."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                linear.pack()
        self.head.pack()

    def forward(
        self,
        token_ids: Tensor,
        batch: ops.BatchInfo,
        sampled: Tensor | None,
        caches: list[ops.KVCache],
        buffers: Activations,
    ) -> Tensor:
        """Logits ``[num_sampled, vocab_size]``; this step's keys and values enter the caches.

        sampled: ``[num_sampled]`` int32, the tokens whose logits are wanted; None: all of them, in order.
        The others are as for attend().
        """
        rows = self.attend(token_ids, batch, caches, buffers)
        return self.logits(rows if sampled is None else buffers.select(rows, sampled))

    def attend(
        self, token_ids: Tensor, batch: ops.BatchInfo, caches: list[ops.KVCache], buffers: Activations
    ) -> Rows:
        """All but what lies behind the last layer's attention: what logits() goes on from, for the tokens
        whose logits are wanted. This step's keys and values enter the caches.

        token_ids: ``[num_tokens]`` int32.
        caches: one per layer.
        """
        eps = self.config.rms_norm_eps
        rows = buffers.rows(token_ids.shape[0])
        ops.embedding(token_ids, self.embedding, out=rows.residual)
        ops.rms_norm(rows.residual, self.layers[0].input_norm, eps, out=rows.hidden)
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            qkv = layer.qkv(rows.hidden)
            ops.rope_and_cache(qkv, self.rope, cache, batch)
            query = qkv[:, : self.config.q_size]
            ops.paged_attention(query, cache, batch, self.softmax_scale, out=rows.attention)
            if i + 1 < len(self.layers):
                self._finish_layer(i, rows, self.layers[i + 1].input_norm)
        return rows

    def logits(self, rows: Rows) -> Tensor:
        """Logits ``[num_rows, vocab_size]`` of rows of attend()."""
        self._finish_layer(len(self.layers) - 1, rows, self.norm)
        return self.head(rows.hidden)

    def _finish_layer(self, index: int, rows: Rows, next_norm: Tensor) -> None:
        """What lies behind a layer's attention, and the norm that follows."""
        layer, eps = self.layers[index], self.config.rms_norm_eps
        added = layer.o(rows.attention)
        ops.rms_norm(added, layer.mlp_norm, eps, residual=rows.residual, out=rows.hidden)
        ops.silu_mul(layer.gate_up(rows.hidden), out=rows.mlp)
        added = layer.down(rows.mlp)
        ops.rms_norm(added, next_norm, eps, residual=rows.residual, out=rows.hidden)
