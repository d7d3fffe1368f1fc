"""What vLLM's sampler makes of a row of logits before it divides by the temperature, in plain numpy, one
request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from quire.sampling_params import SamplingParams


@dataclass(frozen=True)
class Fields:
    """Of a request; names are those of SamplingParams, bad words are ids."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] = ()
    bad_word_ids: Sequence[Sequence[int]] = ()

    @classmethod
    def of(cls, params: SamplingParams, bad_word_ids: Sequence[Sequence[int]]) -> Fields:
        return cls(
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            logit_bias=dict(params.logit_bias),
            allowed_token_ids=params.allowed_token_ids or (),
            bad_word_ids=bad_word_ids,
        )

    def banned(self, output: Sequence[int]) -> set[int]:
        """Ids that would complete a bad word."""
        banned = set()
        for *before, last in self.bad_word_ids:
            if list(output)[len(output) - len(before) :] == before and len(output) >= len(before):
                banned.add(last)
        return banned

    def edit(
        self,
        logits: NDArray[np.float32],
        prompt: Sequence[int],
        output: Sequence[int],
        masked: Sequence[int] = (),
    ) -> NDArray[np.float32]:
        """`masked`: ids that may not be sampled before min_tokens."""
        edited = logits.astype(np.float32)
        if len(self.allowed_token_ids):
            kept = np.zeros(len(edited), dtype=bool)
            kept[list(self.allowed_token_ids)] = True
            edited[~kept] = -np.inf
        edited[list(self.banned(output))] = -np.inf
        edited[list(masked)] = -np.inf
        for token, bias in self.logit_bias.items():
            edited[token] += np.float32(bias)
        counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=len(edited))
        seen = counts > 0
        seen[list(prompt)] = True
        repetition = np.float32(self.repetition_penalty)
        with np.errstate(over="ignore"):
            edited = np.where(
                seen, np.where(edited > 0, edited / repetition, edited * repetition), edited
            ).astype(np.float32)
        # One rounding, as a fused multiply-add has.
        frequency = np.float64(np.float32(self.frequency_penalty))
        edited = (edited.astype(np.float64) - frequency * counts).astype(np.float32)
        return np.where(counts > 0, edited - np.float32(self.presence_penalty), edited).astype(np.float32)
