"""Writes docs/families.md: every published config, and how far what Quire computes is from transformers.

PYTHONPATH=python:tests/families:tests/python/engine python tests/families/families_page.py > docs/families.md
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
import transformers
from family_checkpoints import CONFIGS, config_of
from test_parity import REFUSED, TOLERANCE, worst_difference

HEAD = """# Families that were checked, and how well they agree

Each row is a checkpoint with a published `config.json`, small sizes and random weights, served by the CPU
engine in float32 and compared with Hugging Face transformers {transformers}: log probabilities of the five
likeliest tokens at every place of four prompts (5 to 150 tokens, in chunks, with shared prefixes and
preemption) and of 64 greedy tokens each, whose ids are equal. CI fails where a difference reaches
{tolerance}.

The last column is the largest difference, rounded up to one digit. This page is written by
`tests/families/families_page.py`.

| checkpoint | architecture | largest difference |
| --- | --- | --- |"""

TAIL = """
Known gaps:

- `longrope` (Phi 3 128k, Phi 4 mini) has two sets of frequencies, for contexts up to the original length and
  beyond it. transformers chooses for each sequence; Quire by `max_model_len`, for all requests, as vLLM does.
  With `max_model_len` at the original length short contexts are exact.
- `dynamic` RoPE stretches contexts beyond `max_position_embeddings`, which Quire does not have.
- Gemma 3 is its text model: the vision parts are not read.
"""


def rounded_up(value: float) -> str:
    exponent = math.floor(math.log10(value))
    return f"{math.ceil(value / 10**exponent) * 10**exponent:.0e}".replace("e-0", "e-")


def main() -> None:
    print(HEAD.format(transformers=transformers.__version__, tolerance=TOLERANCE))
    torch.set_num_threads(1)
    for name in sorted(CONFIGS):
        architecture = config_of(name)["architectures"][0]
        if name in REFUSED:
            print(f"| {name} | `{architecture}` | refused |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | `{architecture}` | {rounded_up(worst_difference(name, Path(folder)))} |")
    print(TAIL, end="")


if __name__ == "__main__":
    main()
