"""A model on one device: its spec walked once at the start, then one pass over a mixed batch per step.

On a GPU all of a pass is capturable in a CUDA graph: every activation has its place in buffers of the largest
step, so a captured pass keeps valid addresses. On a CPU projections give new tensors, the rest lies in
buffers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quire import ops
from quire.models.activations import Activations, Rows
from quire.models.linear import GateUp, Input, Linear, Reader, input_of
from quire.models.mlp import Mlp
from quire.models.moe import Moe
from quire.models.norm import Norm
from quire.models.parameters import Weights
from quire.models.rope import cos_sin, position_scales
from quire.models.spec import AttentionSpec, LayerSpec, LinearSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec


class _Layer(NamedTuple):
    qkv: Linear
    rope: ops.RopeTable
    qk_norm: ops.QkNorm | None  # of each head
    row_norms: tuple[tuple[Norm, slice], ...]  # of all queries, and of all keys, of a token
    window: int | None
    sinks: Tensor | None
    q_size: int
    o: Linear
    attention_out_norm: Norm | None
    mlp_norm: Norm | None
    mlp: Mlp | Moe
    mlp_out_norm: Norm | None
    is_parallel: bool
    residual_scale: float
    next_norm: Norm | None  # the next layer's first one, or the model's last


class Decoder:
    """A model with its weights. attend() and logits() are the calls of a step."""

    def __init__(
        self, weights: Weights, device: torch.device, max_model_len: int, *, batch_invariant: bool = False
    ) -> None:
        spec = self.spec = weights.table.spec

        @lru_cache
        def rope_table(rope: RopeSpec) -> ops.RopeTable:
            cos, sin = cos_sin(rope, spec.attention.head_dim, max_model_len)
            return ops.RopeTable(cos.to(device), sin.to(device))

        def make_linear(linear: LinearSpec) -> Linear:
            found = weights.table.format_of(linear)
            return found.linear(linear, weights.linear(linear), is_invariant=batch_invariant)

        def make_gate_up(linear: LinearSpec) -> GateUp:
            found = weights.table.format_of(linear)
            return found.gate_up(linear, weights.linear(linear), is_invariant=batch_invariant)

        @lru_cache  # two blocks may share one
        def make_norm(norm: NormSpec | None) -> Norm | None:
            return None if norm is None else weights.norm(norm)

        def make_mlp(layer: LayerSpec) -> Mlp | Moe:
            if isinstance(layer.mlp, MlpSpec):
                return Mlp(layer.mlp, make_linear, make_gate_up)
            return Moe(layer.mlp, weights, make_linear, make_gate_up)

        def make_row_norms(attention: AttentionSpec) -> tuple[tuple[Norm, slice], ...]:
            if attention.qk_norm is None or attention.qk_norm[0].size == attention.head_dim:
                return ()
            q, k = map(weights.norm, attention.qk_norm)
            q_size = attention.q_size
            return (q, slice(q_size)), (k, slice(q_size, q_size + attention.kv_size))

        def make_layer(layer: LayerSpec, next_norm: NormSpec | None) -> _Layer:
            attention = layer.attention
            return _Layer(
                qkv=make_linear(attention.qkv),
                rope=rope_table(attention.rope),
                qk_norm=weights.qk_norm(attention),
                row_norms=make_row_norms(attention),
                window=attention.window,
                sinks=weights.sinks(attention),
                q_size=attention.q_size,
                o=make_linear(attention.o),
                attention_out_norm=make_norm(layer.attention_out_norm),
                mlp_norm=make_norm(layer.mlp_norm),
                mlp=make_mlp(layer),
                mlp_out_norm=make_norm(layer.mlp_out_norm),
                is_parallel=layer.is_parallel,
                residual_scale=layer.residual_scale,
                next_norm=make_norm(next_norm),
            )

        self._embedding = weights.embedding()
        self._positions = weights.positions()
        self._query_scales = None
        if spec.attention.query_scaling is not None:
            scales = position_scales(spec.attention.query_scaling, max_model_len)
            self._query_scales = scales.to(device, weights.table.dtype)[:, None]
        self._first_norm = make_norm(spec.layers[0].input_norm)
        self._layers = [*map(make_layer, spec.layers, spec.next_norms)]
        self._head = make_linear(spec.head)
        # The largest weight of a layer decides how many threads a step's GEMMs get.
        self.num_largest_weights = max(
            linear.in_size * linear.out_size
            for layer in spec.layers
            for linear in (layer.attention.qkv, layer.attention.o, layer.mlp.up)
        )

    def attend(
        self,
        token_ids: Tensor,
        batch: ops.BatchInfo,
        attentions: Mapping[int | None, ops.PagedAttention],
        caches: list[ops.KVCache],
        buffers: Activations,
        *,
        last_token_ids: Tensor | None = None,
    ) -> Rows:
        """All but what follows the last layer's attention. logits() goes on from the rows, or from those that
        `buffers.pick()` picks. This step's keys and values enter the caches.

        token_ids: ``[num_tokens]`` int32; on a GPU negative where `last_token_ids` has them
        (`ops.embedding`).
        attentions: one per distinct window of the spec, planned for the batch.
        caches: one per layer.
        """
        rows = buffers.rows(token_ids.size(0))
        ops.embedding(
            token_ids,
            self._embedding,
            rows.residual,
            scale=self.spec.embedding.scale,
            last_token_ids=last_token_ids,
        )
        if self._positions is not None:
            rows.residual.add_(self._positions.index_select(0, batch.position_ids))
        query_scales = None
        if self._query_scales is not None:
            query_scales = self._query_scales.index_select(0, batch.position_ids)
        x = _norm(None, self._first_norm, rows, self._layers[0].qkv)
        last = len(self._layers) - 1
        for i, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            qkv = layer.qkv(x, rows.qkv)
            for norm, columns in layer.row_norms:
                norm(qkv[:, columns], qkv[:, columns])
            ops.rope_and_cache(qkv, layer.rope, cache, batch, layer.qk_norm)
            query = qkv[:, : layer.q_size]
            if query_scales is not None:
                query.mul_(query_scales)
            attentions[layer.window](
                query,
                cache,
                batch,
                rows.attention,
                sinks=layer.sinks,
                follows_layer=i > 0,
            )
            if i < last:
                x = _finish(layer, rows, self._layers[i + 1].qkv)
        return rows

    def logits(self, rows: Rows) -> Tensor:
        """Logits ``[num_rows, vocab_size]`` of rows of attend(), whose other contents it overwrites."""
        logits = self._head(_finish(self._layers[-1], rows, self._head), rows.logits)
        if self.spec.logit_scale == 1.0 and self.spec.logit_cap is None:
            return logits
        return ops.scale_and_cap(logits, scale=self.spec.logit_scale, soft_cap=self.spec.logit_cap)


def paged_attentions(
    spec: ModelSpec, device: torch.device, **maxima: int
) -> dict[int | None, ops.PagedAttention]:
    """One for each distinct window, as attend() takes them. maxima, on a GPU: what `ops.PagedAttention` needs
    to know of a step. Raises ValueError for sizes that its kernels do not have."""
    sizes = spec.attention
    return {
        window: ops.PagedAttention(
            num_q_heads=sizes.num_q_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            scale=sizes.scale,
            window=window,
            soft_cap=sizes.soft_cap,
            device=device,
            **maxima,
        )
        for window in spec.windows
    }


def _finish(layer: _Layer, rows: Rows, reader: Linear) -> Input:
    """What follows a layer's attention, and the next norm. Returns what `reader` reads."""
    x: Any  # as layer.mlp takes it
    attention = input_of(layer.o, rows.attention, rows.quantized_inner)
    if layer.is_parallel:
        x = _norm(None, layer.mlp_norm, rows, layer.mlp)
        rest = layer.o.add_to(attention, rows.residual, rows.added)
        if rest is not None:
            rows.residual.add_(rest)
        return _norm(layer.mlp.add_to(x, rows), layer.next_norm, rows, reader)
    scale = layer.residual_scale
    if layer.attention_out_norm is None and scale == 1.0:
        rest = layer.o.add_to(attention, rows.residual, rows.added)
    else:
        rest = _normed(layer.o(attention, rows.added), layer.attention_out_norm)
    x = _norm(rest, layer.mlp_norm, rows, layer.mlp, scale)
    if layer.mlp_out_norm is None and scale == 1.0:
        rest = layer.mlp.add_to(x, rows)
    else:
        rest = _normed(layer.mlp(x, rows, rows.added), layer.mlp_out_norm)
    return _norm(rest, layer.next_norm, rows, reader, scale)


def _normed(added: Tensor, norm: Norm | None) -> Tensor:
    """The norm of what a block adds, in place."""
    return added if norm is None else norm(added, added)


def _norm(rest: Tensor | None, norm: Norm | None, rows: Rows, reader: Reader, scale: float = 1.0) -> Input:
    """residual += rest * scale, where there is some, and the norm of that, where there is one. Returns its
    place, quantised where the reader takes it so."""
    if norm is None:
        x = rows.residual if rest is None else rows.residual.add_(rest, alpha=scale)
        return input_of(reader, x, rows.quantized_hidden)
    x, residual = (rows.residual, None) if rest is None else (rest, rows.residual)
    quantized = rows.quantized_hidden
    num_rows, size = rows.hidden.shape
    num_scales = 0 if quantized is None else reader.num_scales(num_rows)
    if quantized is None or num_scales == 0:
        return norm(x, rows.hidden, residual, scale)
    out = quantized.rows(num_rows, size, num_scales)
    norm(x, out.values, residual, scale, out.scales)
    return out
