"""Where a GPU leaves sampled ids and logprobs, and how they come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quire.runner.sampled import Logprobs
from quire.sampling_params import MAX_LOGPROBS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Words of a row: an id, its logprob and rank, the likeliest ids and their logprobs.
_ROW_SIZE = 3 + 2 * MAX_LOGPROBS
# For prompts: which token's logits, the token after it, how many likeliest ids.
NUM_PROMPT_INPUTS = 3


def logprobs_bytes(max_num_seqs: int, max_num_tokens: int) -> int:
    """Bytes of both LogprobRows (samples and prompts) and of what they give."""
    return LogprobRows.num_bytes(max_num_seqs + max_num_tokens) + 4 * NUM_PROMPT_INPUTS * max_num_tokens


class LogprobRows:
    """Ids and their logprobs for rows of logits, on the device at a fixed address and in pinned memory for
    each batch that may be in flight: one copy brings them back."""

    @staticmethod
    def num_bytes(max_num_rows: int) -> int:
        return 4 * _ROW_SIZE * max_num_rows

    def __init__(self, max_num_rows: int, device: torch.device, num_copies: int) -> None:
        size = _ROW_SIZE * max_num_rows
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        is_pinned = device.type == "cuda"
        self._host = [torch.zeros(size, dtype=torch.int32, pin_memory=is_pinned) for _ in range(num_copies)]

    def on_device(self, num_rows: int) -> tuple[Tensor, ...]:
        """Ids of that many rows, and what `ops.logprobs` gives."""
        return _arrays(self._device, num_rows)

    def download(self, copy: int, num_rows: int) -> None:
        size = _ROW_SIZE * num_rows
        self._host[copy][:size].copy_(self._device[:size], non_blocking=True)

    def host(self, copy: int, num_rows: int, num_used: int) -> tuple[NDArray[np.int32], Logprobs]:
        """The first of that many rows, once the batch is there; valid until the copy's next download."""
        ids, logprobs, ranks, top_ids, top_logprobs = (
            tensor.numpy()[:num_used] for tensor in _arrays(self._host[copy], num_rows)
        )
        return ids, (logprobs, ranks, top_ids, top_logprobs)


def _arrays(words: Tensor, n: int) -> tuple[Tensor, ...]:
    """Bytes of n rows, one array after the other."""
    ids, logprobs, ranks = words[: 3 * n].view(3, n)
    top_ids, top_logprobs = words[3 * n : _ROW_SIZE * n].view(2, n, MAX_LOGPROBS)
    return ids, logprobs.view(torch.float32), ranks, top_ids, top_logprobs.view(torch.float32)
