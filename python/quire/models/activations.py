"""Where the activations of a step lie."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quire import ops
from quire.models.spec import ModelSpec


class Rows(NamedTuple):
    """The first rows of buffers, `[num_rows, width]` each."""

    attention: Tensor
    residual: Tensor
    hidden: Tensor
    mlp: Tensor
    # What projections give; None: on a CPU they give new tensors.
    qkv: Tensor | None
    added: Tensor | None  # what a block adds to the residual
    gate_up: Tensor | None
    logits: Tensor | None
    experts: ops.MoeWorkspace | None  # not cut
    # Inputs of projections, where some of the model take quantised rows: of what norms give, and of what
    # attention and the MLP give.
    quantized_hidden: ops.QuantizedBuffer | None  # not cut
    quantized_inner: ops.QuantizedBuffer | None


class Activations:
    """Buffers of the largest step, [max_num_tokens, width] each; the later ones [max_num_sampled, width]."""

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        max_num_tokens: int,
        max_num_sampled: int,
        *,
        has_outputs: bool,
        takes_quantized: bool = False,
    ) -> None:
        """has_outputs: with buffers for what projections give; takes_quantized: for their quantised input."""

        def buffer(num_rows: int, width: int) -> Tensor:
            return torch.zeros(num_rows, width, dtype=dtype, device=device)

        def output(num_rows: int, width: int) -> Tensor | None:
            return buffer(num_rows, width) if has_outputs else None

        attention = spec.attention
        self.residual = buffer(max_num_tokens, spec.hidden_size)
        self.hidden = buffer(max_num_tokens, spec.hidden_size)
        self.qkv = output(max_num_tokens, attention.qkv.out_size)
        self.attention = buffer(max_num_tokens, attention.q_size)
        self.gate_up = output(max_num_tokens, max((mlp.up.out_size for mlp in spec.mlps), default=0))
        self.mlp = buffer(max_num_tokens, max((mlp.intermediate_size for mlp in spec.mlps), default=0))
        self.added = output(max_num_tokens, spec.hidden_size)
        self.quantized_hidden = self.quantized_inner = None
        if takes_quantized:
            inner = max(attention.q_size, self.mlp.size(1))
            self.quantized_hidden = ops.QuantizedBuffer(max_num_tokens, spec.hidden_size, device)
            self.quantized_inner = ops.QuantizedBuffer(max_num_tokens, inner, device)
        self.experts = None
        if has_outputs and spec.moe is not None:
            moe = spec.moe
            self.experts = ops.MoeWorkspace(
                num_experts=moe.up.num_experts,
                top_k=moe.top_k,
                hidden_size=spec.hidden_size,
                intermediate_size=moe.down.in_size,
                max_num_tokens=max_num_tokens,
                dtype=dtype,
                device=device,
            )
        # From the last layer's attention on, only the sampled tokens.
        self.sampled_attention = buffer(max_num_sampled, attention.q_size)
        self.sampled_residual = buffer(max_num_sampled, spec.hidden_size)
        self.logits = output(max_num_sampled, spec.vocab_size)
        self.max_num_sampled = max_num_sampled
        self._rows: dict[int, Rows] = {}

    def rows(self, num_rows: int) -> Rows:
        """The rows of all tokens of a step."""
        rows = self._rows.get(num_rows)
        if rows is None:
            rows = self._cut(self.attention, self.residual, num_rows)
            # A view costs as much as a small op. Decode steps: the sizes of prompts are many, and their steps
            # long.
            if num_rows <= self.max_num_sampled:
                self._rows[num_rows] = rows
        return rows

    def pick(self, index: Tensor) -> Rows:
        """The rows of the tokens in `index` ([num_rows] int32): `attention` and `residual` are copied to the
        buffers of sampled tokens."""
        rows = self._cut(self.sampled_attention, self.sampled_residual, index.size(0))
        ops.gather_rows(index, self.attention, rows.attention, self.residual, rows.residual)
        return rows

    def _cut(self, attention: Tensor, residual: Tensor, num_rows: int) -> Rows:
        """The first rows of these two and of the buffers."""

        def first(buffer: Tensor | None) -> Tensor | None:
            return None if buffer is None else buffer[:num_rows]

        return Rows(
            attention=attention[:num_rows],
            residual=residual[:num_rows],
            hidden=self.hidden[:num_rows],
            mlp=self.mlp[:num_rows],
            qkv=first(self.qkv),
            added=first(self.added),
            gate_up=first(self.gate_up),
            logits=first(self.logits),
            experts=self.experts,
            quantized_hidden=self.quantized_hidden,
            quantized_inner=self.quantized_inner,
        )

    @property
    def num_bytes(self) -> int:
        """What the buffers take; on the device "meta", what they would take."""
        others = (self.experts, self.quantized_hidden, self.quantized_inner)
        tensors = [buffer for buffer in vars(self).values() if isinstance(buffer, Tensor)]
        return sum(each.num_bytes for each in others if each is not None) + sum(
            each.nbytes for each in tensors
        )


def cut(buffer: Tensor, width: int) -> Tensor:
    """Contiguous rows of this width in a buffer of as many rows, which may be wider."""
    num_rows = buffer.size(0)
    return buffer if buffer.size(1) == width else buffer.view(-1)[: num_rows * width].view(num_rows, width)
