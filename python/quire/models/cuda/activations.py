"""Where the activations of a step lie on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.models.spec import ModelSpec


class CudaActivations:
    """Buffers of the largest step, [max_num_tokens, width] each; the later ones [max_num_sampled, width]."""

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        max_num_tokens: int,
        max_num_sampled: int,
    ) -> None:
        def buffer(num_rows: int, width: int) -> Tensor:
            return torch.zeros(num_rows, width, dtype=dtype, device=device)

        attention, mlp = spec.attention, spec.mlp
        self.residual = buffer(max_num_tokens, spec.hidden_size)
        self.hidden = buffer(max_num_tokens, spec.hidden_size)
        self.qkv = buffer(max_num_tokens, attention.qkv.out_size)
        self.attention = buffer(max_num_tokens, attention.q_size)
        self.gate_up = buffer(max_num_tokens, mlp.gate_up.out_size)
        self.mlp = buffer(max_num_tokens, mlp.intermediate_size)
        self.added = buffer(max_num_tokens, spec.hidden_size)  # what a block adds to the residual
        # From the last layer's attention on, only the sampled tokens.
        self.sampled_attention = buffer(max_num_sampled, attention.q_size)
        self.sampled_residual = buffer(max_num_sampled, spec.hidden_size)
        self.logits = buffer(max_num_sampled, spec.vocab_size)

    @property
    def num_bytes(self) -> int:
        """What the buffers take; on the device "meta", what they would take."""
        return sum(buffer.nbytes for buffer in vars(self).values())
