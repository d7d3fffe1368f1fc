"""A model on a GPU: its spec walked once at the start, then one pass over a mixed batch per step, all of it
capturable in a CUDA graph.

Every activation has its place in buffers of the largest step, so a captured pass keeps valid addresses and
allocates nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from quire import ops
from quire.models.cuda.activations import CudaActivations
from quire.models.cuda.linear import CudaGateUp, CudaLinear
from quire.models.parameters import Norm, Weights
from quire.models.rope import cos_sin
from quire.models.spec import LayerSpec, LinearSpec, NormSpec, RopeSpec
from quire.step_arrays import StepArrays


class _Layer(NamedTuple):
    qkv: CudaLinear
    rope: ops.RopeTable
    qk_norm: ops.QkNorm | None
    q_size: int
    o: CudaLinear
    mlp_norm: Norm
    gate_up: CudaGateUp
    down: CudaLinear
    next_norm: Norm  # the next layer's first one, or the model's last


class _Rows(NamedTuple):
    """Where the part of a layer after its attention reads and writes, `[num_rows, width]` each."""

    attention: Tensor
    residual: Tensor
    hidden: Tensor
    added: Tensor
    gate_up: Tensor
    mlp: Tensor


class CudaDecoder:
    """A model with its weights, and the forward pass."""

    def __init__(
        self, weights: Weights, device: torch.device, max_model_len: int, *, batch_invariant: bool = False
    ) -> None:
        spec, weight_format = weights.table.spec, weights.table.weight_format

        @lru_cache
        def rope_table(rope: RopeSpec, head_dim: int) -> ops.RopeTable:
            cos, sin = cos_sin(rope, head_dim, max_model_len)
            return ops.RopeTable(cos.to(device), sin.to(device))

        def make_linear(linear: LinearSpec) -> CudaLinear:
            return weight_format.cuda_linear(weights.linear(linear), is_invariant=batch_invariant)

        def make_gate_up(linear: LinearSpec) -> CudaGateUp:
            return weight_format.cuda_gate_up(weights.linear(linear), is_invariant=batch_invariant)

        def make_layer(layer: LayerSpec, next_norm: NormSpec) -> _Layer:
            attention = layer.attention
            return _Layer(
                qkv=make_linear(attention.qkv),
                rope=rope_table(attention.rope, attention.head_dim),
                qk_norm=weights.qk_norm(attention),
                q_size=attention.q_size,
                o=make_linear(attention.o),
                mlp_norm=weights.norm(layer.mlp_norm),
                gate_up=make_gate_up(layer.mlp.gate_up),
                down=make_linear(layer.mlp.down),
                next_norm=weights.norm(next_norm),
            )

        self._embedding = weights.embedding()
        self._first_norm = weights.norm(spec.layers[0].input_norm)
        self._layers = [*map(make_layer, spec.layers, spec.next_norms)]
        self._head = make_linear(spec.head)

    def forward(
        self,
        step: StepArrays,
        batch: ops.BatchInfo,
        attention: ops.PagedAttention,
        caches: list[ops.KVCache],
        last_token_ids: Tensor,
        buffers: CudaActivations,
        *,
        is_all_sampled: bool,
    ) -> Tensor:
        """Logits ``[num_sampled, vocab_size]``; this step's keys and values enter the caches.

        is_all_sampled: the sampled tokens are all tokens, in order: a decode step.
        """
        num_tokens = step.num_tokens
        qkv = buffers.qkv[:num_tokens]
        rows = _rows(buffers, buffers.attention, buffers.residual, num_tokens)
        last = len(self._layers) - 1

        ops.embedding(step.token_ids, self._embedding, rows.residual, last_token_ids=last_token_ids)
        ops.rms_norm(rows.residual, *self._first_norm, out=rows.hidden)
        for i, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            layer.qkv(rows.hidden, out=qkv)
            ops.rope_and_cache(qkv, layer.rope, cache, batch, layer.qk_norm)
            query = qkv[:, : layer.q_size]
            attention(query, cache, batch, rows.attention, follows_layer=i > 0)
            if i == last and not is_all_sampled:
                # Nothing reads the other tokens from here on.
                rows = _pick(buffers, step.sample_token_idx, rows.attention, rows.residual)
            _finish(layer, rows)
        return self._logits(rows, buffers)

    def logits_of(self, index: Tensor, buffers: CudaActivations) -> Tensor:
        """Logits of other tokens of the step that forward() computed last, with is_all_sampled false: of
        those in `index`, at most as many as `buffers.logits` has rows. Overwrites the step's own."""
        rows = _pick(buffers, index, buffers.attention, buffers.residual)
        _finish(self._layers[-1], rows)
        return self._logits(rows, buffers)

    def _logits(self, rows: _Rows, buffers: CudaActivations) -> Tensor:
        logits = buffers.logits[: rows.hidden.size(0)]
        self._head(rows.hidden, out=logits)
        return logits


def _rows(buffers: CudaActivations, attention: Tensor, residual: Tensor, num_rows: int) -> _Rows:
    """The first rows of these two and of the buffers."""
    return _Rows(
        attention=attention[:num_rows],
        residual=residual[:num_rows],
        hidden=buffers.hidden[:num_rows],
        added=buffers.added[:num_rows],
        gate_up=buffers.gate_up[:num_rows],
        mlp=buffers.mlp[:num_rows],
    )


def _pick(buffers: CudaActivations, index: Tensor, attention: Tensor, residual: Tensor) -> _Rows:
    """The rows in `index` of these two, copied to where sampled tokens go on."""
    rows = _rows(buffers, buffers.sampled_attention, buffers.sampled_residual, index.size(0))
    ops.gather_rows(index, attention, rows.attention, residual, rows.residual)
    return rows


def _finish(layer: _Layer, rows: _Rows) -> None:
    """What follows a layer's attention, and the next norm, into `rows.hidden`."""
    rest = layer.o.add_to(rows.attention, rows.residual, rows.added)
    _norm(rest, layer.mlp_norm, rows)
    layer.gate_up.silu_mul(rows.hidden, rows.gate_up, out=rows.mlp)
    rest = layer.down.add_to(rows.mlp, rows.residual, rows.added)
    _norm(rest, layer.next_norm, rows)


def _norm(rest: Tensor | None, norm: Norm, rows: _Rows) -> None:
    """residual += rest, where there is some, and the norm of that."""
    if rest is None:
        ops.rms_norm(rows.residual, *norm, out=rows.hidden)
    else:
        ops.rms_norm(rest, *norm, residual=rows.residual, out=rows.hidden)
