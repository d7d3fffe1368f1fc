"""What Hugging Face transformers generates greedily, and how far its choices are from a tie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

# Two float32 programs that add in different orders differ by about this much in logits of order 10.
TIE = 1e-3


@dataclass(frozen=True)
class Greedy:
    token_ids: list[int]
    gaps: list[float]  # of each step: best logit less the second best


@cache
def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@cache
def greedy(folder: Path, prompt: tuple[int, ...], max_tokens: int) -> Greedy:
    """`generate` in float32, one prompt at a time, going on past the end-of-sequence token."""
    ids = torch.tensor([prompt])
    model = load(folder)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        result = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = torch.stack([logits[0].topk(2).values for logits in result.logits])
    return Greedy(result.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist())


def assert_same(expected: Greedy, actual: list[int], what: str) -> None:
    """Equal ids. Where they part, the reference itself must have been undecided; what follows then is
    another text."""
    assert len(expected.token_ids) == len(actual), what
    for step, (want, got) in enumerate(zip(expected.token_ids, actual, strict=True)):
        if want != got:
            gap = expected.gaps[step]
            assert gap < TIE, (
                f"{what}: token {step} is {got}, transformers says {want} by {gap:.4f} in the logits"
            )
            return
