"""The Llama architecture: weights as the GEMMs want them, and one forward pass over a mixed batch.

GEMMs are torch's, everything between them is ours (`quire.ops`). Projections that read the same input are
one matrix. Weights lie as [in, out], so that `x @ w` streams them once; checkpoints have [out, in].

Nothing is allocated per step: activations are views into buffers of the largest size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire import ops
from quire.models.config import ModelConfig
from quire.models.rope import cos_sin


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One layer. Biases are None where the model has none."""

    input_norm: Tensor  # [hidden_size]
    qkv: Tensor  # [hidden_size, q_size + 2 * kv_size]
    qkv_bias: Tensor | None
    o: Tensor  # [q_size, hidden_size]
    o_bias: Tensor | None
    mlp_norm: Tensor  # [hidden_size]
    gate_up: Tensor  # [hidden_size, 2 * intermediate_size]
    gate_up_bias: Tensor | None
    down: Tensor  # [intermediate_size, hidden_size]
    down_bias: Tensor | None


class Rows:
    """The first rows of every activation buffer. Made once per row count, since a view costs as much as a
    small op."""

    def __init__(self, buffers: Activations, num_rows: int) -> None:
        self.residual = buffers.residual[:num_rows]
        self.hidden = buffers.hidden[:num_rows]
        self.qkv = buffers.qkv[:num_rows]
        self.query = self.qkv[:, : buffers.q_size]
        self.attention = buffers.attention[:num_rows]
        self.gate_up = buffers.gate_up[:num_rows]
        self.mlp = buffers.mlp[:num_rows]
        # Used when every row is sampled; steps with more rows than can be sampled have fewer here.
        self.logits = buffers.logits[:num_rows]


class Activations:
    """Buffers of the largest step, [max_num_tokens, width] each, and the logits of the sampled tokens."""

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, max_num_tokens: int, max_num_sampled: int
    ) -> None:
        def buffer(num_rows: int, width: int) -> Tensor:
            return torch.zeros(num_rows, width, dtype=dtype)

        self.q_size = config.q_size
        self.residual = buffer(max_num_tokens, config.hidden_size)
        self.hidden = buffer(max_num_tokens, config.hidden_size)
        self.qkv = buffer(max_num_tokens, config.q_size + 2 * config.kv_size)
        self.attention = buffer(max_num_tokens, config.q_size)
        self.gate_up = buffer(max_num_tokens, 2 * config.intermediate_size)
        self.mlp = buffer(max_num_tokens, config.intermediate_size)
        self._selected_residual = buffer(max_num_sampled, config.hidden_size)
        self._selected_attention = buffer(max_num_sampled, config.q_size)
        self.logits = buffer(max_num_sampled, config.vocab_size)
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
        """The first rows, with `attention` and `residual` of the rows in `index` (at most
        max_num_sampled)."""
        count = index.shape[0]
        chosen = self.rows(count)
        torch.index_select(rows.attention, 0, index, out=self._selected_attention[:count])
        torch.index_select(rows.residual, 0, index, out=self._selected_residual[:count])
        chosen.attention.copy_(self._selected_attention[:count])
        chosen.residual.copy_(self._selected_residual[:count])
        return chosen

    @staticmethod
    def num_bytes(config: ModelConfig, itemsize: int, max_num_tokens: int, max_num_sampled: int) -> int:
        """What the buffers will take."""
        token = 2 * config.hidden_size + 2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size
        sampled = config.hidden_size + config.q_size + config.vocab_size
        return (max_num_tokens * token + max_num_sampled * sampled) * itemsize


class Llama:
    """Weights of one model and the forward pass."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, max_model_len: int) -> None:
        self.config = config
        self.dtype = dtype
        self.softmax_scale = config.head_dim**-0.5
        self.rope = ops.RopeTable(*cos_sin(config.rope, config.head_dim, max_model_len))

        def matrix(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype)

        hidden, qkv, gate_up = (
            config.hidden_size,
            config.q_size + 2 * config.kv_size,
            2 * config.intermediate_size,
        )
        self.embedding = matrix(config.vocab_size, hidden)
        self.layers = [
            LayerWeights(
                input_norm=matrix(hidden),
                qkv=matrix(hidden, qkv),
                qkv_bias=matrix(qkv) if config.attention_bias else None,
                o=matrix(config.q_size, hidden),
                o_bias=matrix(hidden) if config.attention_bias else None,
                mlp_norm=matrix(hidden),
                gate_up=matrix(hidden, gate_up),
                gate_up_bias=matrix(gate_up) if config.mlp_bias else None,
                down=matrix(config.intermediate_size, hidden),
                down_bias=matrix(hidden) if config.mlp_bias else None,
            )
            for _ in range(config.num_layers)
        ]
        self.norm = matrix(hidden)
        # A tied head is the embedding seen from the other side.
        self.head = self.embedding.t() if config.tie_word_embeddings else matrix(hidden, config.vocab_size)

    @staticmethod
    def num_bytes(config: ModelConfig, itemsize: int) -> int:
        """What the weights will take."""
        hidden, qkv, gate_up = (
            config.hidden_size,
            config.q_size + 2 * config.kv_size,
            2 * config.intermediate_size,
        )
        layer = 2 * hidden + hidden * (qkv + config.q_size + gate_up + config.intermediate_size)
        layer += (qkv + hidden) * config.attention_bias + (gate_up + hidden) * config.mlp_bias
        embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
        return (config.num_layers * layer + embeddings + hidden) * itemsize

    def destinations(self) -> dict[str, Tensor]:
        """Name in a Hugging Face checkpoint -> the view of our weights that it fills, in the checkpoint's
        shape."""
        config = self.config
        places = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not config.tie_word_embeddings:
            places["lm_head.weight"] = self.head.t()
        qkv_sizes = [config.q_size, config.kv_size, config.kv_size]
        gate_up_sizes = [config.intermediate_size, config.intermediate_size]
        for i, layer in enumerate(self.layers):
            root = f"model.layers.{i}."
            places[f"{root}input_layernorm.weight"] = layer.input_norm
            places[f"{root}post_attention_layernorm.weight"] = layer.mlp_norm
            for names, sizes, weight, bias in (
                (
                    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                    qkv_sizes,
                    layer.qkv,
                    layer.qkv_bias,
                ),
                (("self_attn.o_proj",), [config.hidden_size], layer.o, layer.o_bias),
                (("mlp.gate_proj", "mlp.up_proj"), gate_up_sizes, layer.gate_up, layer.gate_up_bias),
                (("mlp.down_proj",), [config.hidden_size], layer.down, layer.down_bias),
            ):
                for name, part in zip(names, torch.split(weight, sizes, dim=1), strict=True):
                    places[f"{root}{name}.weight"] = part.t()
                if bias is not None:
                    for name, part in zip(names, torch.split(bias, sizes), strict=True):
                        places[f"{root}{name}.bias"] = part
        return places

    def forward(
        self,
        token_ids: Tensor,
        batch: ops.BatchInfo,
        sampled: Tensor | None,
        caches: list[ops.KVCache],
        buffers: Activations,
    ) -> Tensor:
        """Logits ``[num_sampled, vocab_size]``, valid until the next call; this step's keys and values enter
        the caches.

        token_ids: ``[num_tokens]`` int32.
        sampled: ``[num_sampled]`` int32, the tokens whose logits are wanted; None: all of them, in order.
        caches: one per layer.
        """
        eps = self.config.rms_norm_eps
        last = len(self.layers) - 1
        rows = buffers.rows(token_ids.shape[0])
        ops.embedding(token_ids, self.embedding, out=rows.residual)
        ops.rms_norm(rows.residual, self.layers[0].input_norm, eps, out=rows.hidden)
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            linear(rows.hidden, layer.qkv, layer.qkv_bias, rows.qkv)
            ops.rope_and_cache(rows.qkv, self.rope, cache, batch)
            ops.paged_attention(rows.query, cache, batch, self.softmax_scale, out=rows.attention)
            if i == last and sampled is not None:
                rows = buffers.select(rows, sampled)  # nothing reads the other tokens from here on
            linear(rows.attention, layer.o, layer.o_bias, rows.hidden)
            ops.rms_norm(rows.hidden, layer.mlp_norm, eps, residual=rows.residual, out=rows.hidden)
            linear(rows.hidden, layer.gate_up, layer.gate_up_bias, rows.gate_up)
            ops.silu_mul(rows.gate_up, out=rows.mlp)
            linear(rows.mlp, layer.down, layer.down_bias, rows.hidden)
            next_norm = self.norm if i == last else self.layers[i + 1].input_norm
            ops.rms_norm(rows.hidden, next_norm, eps, residual=rows.residual, out=rows.hidden)
        return torch.mm(rows.hidden, self.head, out=rows.logits)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x @ weight + bias for x ``[num_rows, in]``, weight ``[in, out]``."""
    if bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)
