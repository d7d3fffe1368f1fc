"""Logprobs of prompts on a GPU, after their step.

They stay outside of its graph: a step may ask for as many rows as it has tokens, whose logits are many times
what the step has room for. So they go through the head in pieces, as many as there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quire import _core, ops
from quire.models.activations import Activations
from quire.models.decoder import Decoder
from quire.runner.logprob_rows import NUM_PROMPT_INPUTS, LogprobRows
from quire.runner.sampled import PROMPT_PIECE, Logprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PromptLogprobs:
    """Computes the logprobs of a batch's prompt rows; allocated on first use."""

    def __init__(self, max_num_tokens: int, device: torch.device, num_copies: int) -> None:
        self._rows = LogprobRows(max_num_tokens, device, num_copies)
        size = (NUM_PROMPT_INPUTS, max_num_tokens)
        is_pinned = device.type == "cuda"
        self._inputs = torch.zeros(size, dtype=torch.int32, device=device)
        self._host_inputs = [
            torch.zeros(size, dtype=torch.int32, pin_memory=is_pinned) for _ in range(num_copies)
        ]

    def launch(self, copy: int, batch: _core.Batch, model: Decoder, activations: Activations) -> None:
        """Compute and copy back what the batch asks for, after its step on the current stream. What the
        same copy held before must have been collected. Overwrites `activations.logits`."""
        num_rows = batch.num_prompt_rows
        inputs = self._upload(copy, batch.prompt_token_idx, batch.prompt_next_ids, batch.prompt_num_logprobs)
        _, *out = self._rows.on_device(num_rows)
        size = min(PROMPT_PIECE, activations.max_num_sampled)
        for begin in range(0, num_rows, size):
            piece = slice(begin, begin + size)
            index, next_ids, num_logprobs = (tensor[piece] for tensor in inputs)
            logits = model.logits(activations.pick(index))
            out_piece = [tensor[piece] for tensor in out]
            ops.logprobs(logits, token_ids=next_ids, num_logprobs=num_logprobs, out=out_piece)
        self._rows.download(copy, num_rows)

    def host(self, copy: int, num_rows: int) -> Logprobs:
        """See LogprobRows.host()."""
        return self._rows.host(copy, num_rows, num_rows)[1]

    def _upload(self, copy: int, *arrays: NDArray[np.int32]) -> list[Tensor]:
        """The arrays on the device, ``[num_rows]`` each."""
        num_rows = len(arrays[0])
        tensors = []
        for host, device, array in zip(self._host_inputs[copy], self._inputs, arrays, strict=True):
            host[:num_rows].numpy()[:] = array
            tensors.append(device[:num_rows].copy_(host[:num_rows], non_blocking=True))
        return tensors
