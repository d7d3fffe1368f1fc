"""The padded sizes for which a step is captured as a CUDA graph."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

# Up to this size, in steps of that.
_DECODE_STEPS = [(2, 1), (4, 2), (8, 4), (64, 8), (256, 16), (1024, 64)]
_TOKEN_STEPS = [(64, 16), (512, 64), (2304, 128), (8192, 512), (16384, 1024)]


@dataclass(frozen=True, order=True)
class StepShape:
    """How many rows of each kind a step computes, padding included."""

    num_tokens: int
    num_seqs: int
    num_sampled: int
    is_decode: bool  # one token per request, each of them sampled


class StepShapes:
    """Every captured shape of an engine, and the smallest one that a step fits into.

    Decode steps are captured by their number of requests. Mixed steps are captured by their number of tokens,
    with room for every request; and for few or all of them to be sampled, since the vocabulary's projection
    of all of them would cost a small step too much.
    """

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.max_num_seqs = max_num_seqs
        self._decode = _up_to(min(max_num_seqs, max_num_batched_tokens), _DECODE_STEPS)
        self._tokens = _up_to(max_num_batched_tokens, _TOKEN_STEPS)
        self._samples = sorted({min(16, max_num_seqs), min(64, max_num_seqs), max_num_seqs})

    def __len__(self) -> int:
        return len(self.all())

    def all(self) -> list[StepShape]:
        """The largest first: what is captured later finds its memory in what came before."""
        decode = [StepShape(n, n, n, True) for n in self._decode]
        mixed = {
            StepShape(n, self.max_num_seqs, min(s, n), False) for n in self._tokens for s in self._samples
        }
        return sorted(decode, reverse=True) + sorted(mixed, reverse=True)

    def fit(self, num_tokens: int, num_sampled: int) -> StepShape:
        """The captured shape for a step. num_tokens and num_sampled are within the engine's limits."""
        if num_tokens == num_sampled:
            size = _at_least(self._decode, num_tokens)
            return StepShape(size, size, size, True)
        tokens = _at_least(self._tokens, num_tokens)
        samples = min(_at_least(self._samples, num_sampled), tokens)
        return StepShape(tokens, self.max_num_seqs, samples, False)


def _at_least(sizes: list[int], size: int) -> int:
    return sizes[bisect_left(sizes, size)]


def _up_to(limit: int, steps: list[tuple[int, int]]) -> list[int]:
    """Sizes below the limit, and the limit. steps: (up to this size, in steps of that)."""
    sizes = []
    size = 0
    for end, step in steps:
        while size + step <= end and size + step < limit:
            size += step
            sizes.append(size)
    while size + steps[-1][1] < limit:
        size += steps[-1][1]
        sizes.append(size)
    return [*sizes, limit]
