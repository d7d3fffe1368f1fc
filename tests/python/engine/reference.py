"""Whether token ids are what Hugging Face transformers chooses greedily."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# Two float32 programs that add in different orders differ by about this much in logits of order 10.
TIE = 1e-3


@cache
def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def next_token_logits(folder: Path, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """[len(answer), vocabulary] float32: what transformers chooses each token of `answer` from."""
    with torch.inference_mode():
        logits = load(folder)(torch.tensor([[*prompt, *answer]])).logits
    return logits[0, len(prompt) - 1 : -1].float()


def check_greedy(
    folder: Path, prompt: Sequence[int], answer: Sequence[int], num_tokens: int, what: str
) -> None:
    """Each of the `num_tokens` ids has the largest logit after those before it, or one within TIE of it."""
    assert num_tokens == len(answer), what
    logits = next_token_logits(folder, prompt, answer)
    best = logits.max(dim=1)
    gaps = best.values - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    wrong = [
        f"token {step}: got {answer[step]}, transformers says {best.indices[step]} by {gap:.4f} in logits"
        for step, gap in enumerate(gaps.tolist())
        if gap >= TIE
    ]
    assert [] == wrong, what
