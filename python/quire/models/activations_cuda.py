"""Where the activations of a step lie on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.models.config import ModelConfig


class CudaActivations:
    """Buffers of the largest step, [max_num_tokens, width] each; the later ones [max_num_sampled, width]."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_num_tokens: int,
        max_num_sampled: int,
    ) -> None:
        def buffer(num_rows: int, width: int) -> Tensor:
            return torch.zeros(num_rows, width, dtype=dtype, device=device)

        self.residual = buffer(max_num_tokens, config.hidden_size)
        self.hidden = buffer(max_num_tokens, config.hidden_size)
        self.qkv = buffer(max_num_tokens, config.q_size + 2 * config.kv_size)
        self.attention = buffer(max_num_tokens, config.q_size)
        self.gate_up = buffer(max_num_tokens, 2 * config.intermediate_size)
        self.mlp = buffer(max_num_tokens, config.intermediate_size)
        self.added = buffer(max_num_tokens, config.hidden_size)  # what a block adds to the residual
        # Of the sampled tokens alone, from the last layer's attention on.
        self.sampled_attention = buffer(max_num_sampled, config.q_size)
        self.sampled_residual = buffer(max_num_sampled, config.hidden_size)
        self.logits = buffer(max_num_sampled, config.vocab_size)

    @staticmethod
    def num_bytes(config: ModelConfig, itemsize: int, max_num_tokens: int, max_num_sampled: int) -> int:
        """What the buffers take."""
        hidden, qkv = config.hidden_size, config.q_size + 2 * config.kv_size
        per_token = 3 * hidden + qkv + config.q_size + 3 * config.intermediate_size
        per_sample = config.q_size + hidden + config.vocab_size
        return (max_num_tokens * per_token + max_num_sampled * per_sample) * itemsize
