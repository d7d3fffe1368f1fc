"""What a runner gives for a batch: ids, and logprobs where requests ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What `quire.ops.logprobs` gives for rows of logits: token_logprobs [num_rows], token_ranks [num_rows],
# top_ids [num_rows, 20], top_logprobs [num_rows, 20].
Logprobs: TypeAlias = "tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]"

# Rows of prompts that go through the vocabulary's projection at once: logits of a whole prompt could take
# gigabytes.
PROMPT_PIECE = 256


class Sampled(NamedTuple):
    """The arguments of `EngineCore.update`."""

    ids: NDArray[np.int32]  # [num_sampled], or [sum of counts]
    logprobs: Logprobs | None = None  # of the ids, when batch.has_logprobs
    prompt_logprobs: Logprobs | None = None  # [num_prompt_rows], when there are any
    counts: NDArray[np.int32] | None = None  # [num_sampled] ids in a row of each sample; None: one each
