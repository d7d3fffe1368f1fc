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
    min_tokens: int = 0
    end_ids: Sequence[int] = ()  # may not come before min_tokens

    @classmethod
    def of(
        cls, params: SamplingParams, bad_word_ids: Sequence[Sequence[int]], eos_ids: Sequence[int]
    ) -> Fields:
        return cls(
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            logit_bias=dict(params.logit_bias),
            allowed_token_ids=params.allowed_token_ids or (),
            bad_word_ids=bad_word_ids,
            min_tokens=params.min_tokens,
            end_ids=[*eos_ids, *(params.stop_token_ids or ())],
        )

    def banned(self, output: Sequence[int]) -> set[int]:
        """Ids that would complete a bad word."""
        banned = set()
        for *before, last in self.bad_word_ids:
            if list(output)[len(output) - len(before) :] == before and len(output) >= len(before):
                banned.add(last)
        return banned

    def masked(self, output: Sequence[int], vocab_size: int) -> set[int]:
        """Ids that may not come next."""
        masked = self.banned(output)
        if len(self.allowed_token_ids):
            masked |= set(range(vocab_size)) - set(self.allowed_token_ids)
        return masked | set(self.end_ids) if len(output) < self.min_tokens else masked

    @property
    def changes_logits(self) -> bool:
        """Whether there is more than a mask."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0, 0, 1) or bool(self.logit_bias)

    def adjustment(
        self, logits: NDArray[np.float32], prompt: Sequence[int], output: Sequence[int]
    ) -> NDArray[np.float32]:
        adjusted = logits.astype(np.float32)
        adjusted[list(self.masked(output, len(adjusted)))] = -np.inf
        for token, bias in self.logit_bias.items():
            adjusted[token] += np.float32(bias)
        counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=len(adjusted))
        seen = counts > 0
        seen[list(prompt)] = True
        repetition = np.float32(self.repetition_penalty)
        with np.errstate(over="ignore"):
            adjusted = np.where(
                seen, np.where(adjusted > 0, adjusted / repetition, adjusted * repetition), adjusted
            ).astype(np.float32)
        # One rounding, as a fused multiply-add has.
        frequency = np.float64(np.float32(self.frequency_penalty))
        adjusted = (adjusted.astype(np.float64) - frequency * counts).astype(np.float32)
        return np.where(counts > 0, adjusted - np.float32(self.presence_penalty), adjusted).astype(np.float32)
