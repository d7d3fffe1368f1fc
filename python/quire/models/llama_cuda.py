"""Llama on a GPU: one forward pass over a mixed batch, all of it capturable in a CUDA graph.

Every activation has its place in buffers of the largest step, so a captured pass keeps valid addresses and
allocates nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire import ops_cuda as ops
from quire.models.activations_cuda import CudaActivations
from quire.models.config import ModelConfig
from quire.models.linear_cuda import CudaGateUp, CudaLinear
from quire.models.rope import cos_sin
from quire.models.weights import LayerWeights, LlamaWeights
from quire.step_arrays import StepArrays


class CudaLlama(LlamaWeights[CudaLinear, CudaGateUp]):
    """Weights of one model on one GPU, and the forward pass."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        *,
        batch_invariant: bool = False,
    ) -> None:
        def linear(in_size: int, out_size: int, bias: bool) -> CudaLinear:
            return CudaLinear(in_size, out_size, dtype, device, bias=bias, is_invariant=batch_invariant)

        def gate_up(in_size: int, out_size: int, bias: bool) -> CudaGateUp:
            return CudaGateUp(in_size, out_size, dtype, device, bias=bias, is_invariant=batch_invariant)

        super().__init__(config, dtype, device, linear, gate_up)
        self._cos, self._sin = (
            table.to(device) for table in cos_sin(config.rope, config.head_dim, max_model_len)
        )

    def prepare(self) -> None:
        """Once the weights are there."""
        for layer in self.layers:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                linear.prepare()
        self.head.prepare()

    def forward(
        self,
        step: StepArrays,
        attention: ops.PagedAttention,
        caches: list[ops.KVCache],
        block_tables: Tensor,
        last_token_ids: Tensor,
        buffers: CudaActivations,
        *,
        max_query_len: int,
        is_all_sampled: bool,
    ) -> Tensor:
        """Logits ``[num_sampled, vocab_size]``; this step's keys and values enter the caches.

        is_all_sampled: the sampled tokens are all tokens, in order: a decode step.
        """
        config, eps = self.config, self.config.rms_norm_eps
        num_tokens, num_sampled = step.num_tokens, step.num_sampled
        residual, hidden = buffers.residual[:num_tokens], buffers.hidden[:num_tokens]
        qkv, attended = buffers.qkv[:num_tokens], buffers.attention[:num_tokens]
        query = qkv[:, : config.q_size]
        gate_up, mlp = buffers.gate_up[:num_tokens], buffers.mlp[:num_tokens]
        added = buffers.added[:num_tokens]
        last = len(self.layers) - 1

        ops.embedding(step.token_ids, self.embedding, last_token_ids, out=residual)
        ops.rms_norm(residual, self.layers[0].input_norm, eps, residual=None, out=hidden)
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            layer.qkv(hidden, out=qkv)
            ops.rope_and_cache(qkv, self._cos, self._sin, cache, step)
            attention(query, cache, block_tables, max_query_len, out=attended, follows_layer=i > 0)
            if i == last and not is_all_sampled:
                # Nothing reads the other tokens from here on.
                index = step.sample_token_idx
                sampled_attention = buffers.sampled_attention[:num_sampled]
                sampled_residual = buffers.sampled_residual[:num_sampled]
                ops.gather_rows(index, attended, sampled_attention, residual, sampled_residual)
                attended, residual = sampled_attention, sampled_residual
                hidden, added = hidden[:num_sampled], added[:num_sampled]
                gate_up, mlp = gate_up[:num_sampled], mlp[:num_sampled]
            next_norm = self.norm if i == last else self.layers[i + 1].input_norm
            self._finish_layer(layer, next_norm, attended, residual, hidden, added, gate_up, mlp)
        logits = buffers.logits[:num_sampled]
        self.head(hidden, out=logits)
        return logits

    def logits_of(self, index: Tensor, buffers: CudaActivations) -> Tensor:
        """Logits of other tokens of the step that forward() computed last, with is_all_sampled false: of
        those in `index`, at most as many as `buffers.logits` has rows. Overwrites the step's own."""
        num_rows = index.size(0)
        attended, residual = buffers.sampled_attention[:num_rows], buffers.sampled_residual[:num_rows]
        hidden, added = buffers.hidden[:num_rows], buffers.added[:num_rows]
        gate_up, mlp = buffers.gate_up[:num_rows], buffers.mlp[:num_rows]
        ops.gather_rows(index, buffers.attention, attended, buffers.residual, residual)
        self._finish_layer(self.layers[-1], self.norm, attended, residual, hidden, added, gate_up, mlp)
        logits = buffers.logits[:num_rows]
        self.head(hidden, out=logits)
        return logits

    def _finish_layer(
        self,
        layer: LayerWeights[CudaLinear, CudaGateUp],
        next_norm: Tensor,
        attended: Tensor,
        residual: Tensor,
        hidden: Tensor,
        added: Tensor,
        gate_up: Tensor,
        mlp: Tensor,
    ) -> None:
        """What lies behind a layer's attention, and the norm that follows, into `hidden`."""
        rest = layer.o.add_to(attended, residual, added)
        self._norm(rest, layer.mlp_norm, residual, out=hidden)
        layer.gate_up.silu_mul(hidden, gate_up, out=mlp)
        rest = layer.down.add_to(mlp, residual, added)
        self._norm(rest, next_norm, residual, out=hidden)

    def _norm(self, rest: Tensor | None, weight: Tensor, residual: Tensor, out: Tensor) -> None:
        """residual += rest, where there is some, and the norm of that."""
        eps = self.config.rms_norm_eps
        if rest is None:
            ops.rms_norm(residual, weight, eps, residual=None, out=out)
        else:
            ops.rms_norm(rest, weight, eps, residual=residual, out=out)
