"""A model on a CPU: its spec walked once at the start, then one pass over a mixed batch per step.

GEMMs are torch's, everything between them is ours (`quire.ops`). What lies between two GEMMs goes into
buffers of the largest step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quire import ops
from quire.models.cpu.activations import Activations, Rows
from quire.models.cpu.linear import Linear
from quire.models.parameters import Norm, ParameterTable, Weights
from quire.models.rope import cos_sin
from quire.models.spec import AttentionSpec, LayerSpec, LinearSpec, NormSpec, RopeSpec


class _Layer(NamedTuple):
    qkv: Linear
    rope: ops.RopeTable
    qk_norm: ops.QkNorm | None
    attention: ops.PagedAttention
    q_size: int
    o: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear
    next_norm: Norm  # the next layer's first one, or the model's last


class Decoder:
    """A model with its weights. attend() and logits() are the calls of a step."""

    def __init__(self, weights: Weights, max_model_len: int) -> None:
        spec = self.spec = weights.table.spec
        self.dtype = weights.table.dtype

        @lru_cache
        def rope_table(rope: RopeSpec, head_dim: int) -> ops.RopeTable:
            return ops.RopeTable(*cos_sin(rope, head_dim, max_model_len))

        @lru_cache
        def paged_attention(attention: AttentionSpec) -> ops.PagedAttention:
            return ops.PagedAttention(
                num_q_heads=attention.num_q_heads,
                num_kv_heads=attention.num_kv_heads,
                head_dim=attention.head_dim,
                device=torch.device("cpu"),
            )

        def make_linear(linear: LinearSpec) -> Linear:
            return weights.table.weight_format.cpu_linear(weights.linear(linear))

        def make_layer(layer: LayerSpec, next_norm: NormSpec) -> _Layer:
            attention = layer.attention
            return _Layer(
                qkv=make_linear(attention.qkv),
                rope=rope_table(attention.rope, attention.head_dim),
                qk_norm=weights.qk_norm(attention),
                attention=paged_attention(attention),
                q_size=attention.q_size,
                o=make_linear(attention.o),
                mlp_norm=weights.norm(layer.mlp_norm),
                gate_up=make_linear(layer.mlp.gate_up),
                down=make_linear(layer.mlp.down),
                next_norm=weights.norm(next_norm),
            )

        self._embedding = weights.embedding()
        self._first_norm = weights.norm(spec.layers[0].input_norm)
        self._layers = [*map(make_layer, spec.layers, spec.next_norms)]
        self._head = make_linear(spec.head)
        # The largest weight of a layer decides how many threads a step's GEMMs get.
        self.num_largest_weights = max(
            linear.in_size * linear.out_size
            for layer in spec.layers
            for linear in (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up)
        )

    @staticmethod
    def weight_bytes(table: ParameterTable) -> int:
        """What the weights take: a tied head is a table for the embedding and another, laid out for the
        GEMM."""
        return table.num_bytes + (table.embedding().num_bytes if table.spec.is_tied else 0)

    def attend(
        self, token_ids: Tensor, batch: ops.BatchInfo, caches: list[ops.KVCache], buffers: Activations
    ) -> Rows:
        """All but what follows the last layer's attention: what logits() goes on from, for the tokens whose
        logits are wanted. This step's keys and values enter the caches.

        token_ids: ``[num_tokens]`` int32.
        caches: one per layer.
        """
        rows = buffers.rows(token_ids.shape[0])
        ops.embedding(token_ids, self._embedding, out=rows.residual)
        ops.rms_norm(rows.residual, *self._first_norm, out=rows.hidden)
        last = len(self._layers) - 1
        for i, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            qkv = layer.qkv(rows.hidden)
            ops.rope_and_cache(qkv, layer.rope, cache, batch, layer.qk_norm)
            query = qkv[:, : layer.q_size]
            layer.attention(query, cache, batch, out=rows.attention)
            if i < last:
                self._finish(layer, rows)
        return rows

    def logits(self, rows: Rows) -> Tensor:
        """Logits ``[num_rows, vocab_size]`` of rows of attend()."""
        self._finish(self._layers[-1], rows)
        return self._head(rows.hidden)

    def _finish(self, layer: _Layer, rows: Rows) -> None:
        """What follows a layer's attention, and the next norm."""
        added = layer.o(rows.attention)
        ops.rms_norm(added, *layer.mlp_norm, residual=rows.residual, out=rows.hidden)
        ops.silu_mul(layer.gate_up(rows.hidden), out=rows.mlp)
        added = layer.down(rows.mlp)
        ops.rms_norm(added, *layer.next_norm, residual=rows.residual, out=rows.hidden)
