"""How far logits of the model that comes with the repository move when its weights are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from model_logits import logits_of, mean_kl, relative_norm
from quantized_checkpoints import quantize_folder
from quantized_forms import Form, awq, fp8_blocks, fp8_channels, packed_int4, packed_mxfp4
from quire.model_path import resolve_model
from quire.tokenizer import Tokenizer
from torch import Tensor

FOLDER = resolve_model("quire-8m")
TEXT = '''import os


class Stack:
    """Items, of which the last one comes first."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()


def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
'''


@pytest.fixture(scope="module")
def prompt() -> Sequence[int]:
    return Tokenizer(FOLDER).encode(TEXT)


@pytest.fixture(scope="module")
def expected(prompt: Sequence[int]) -> list[Tensor]:
    return logits_of(FOLDER, [prompt], torch.float32)


@pytest.mark.parametrize(
    ("form", "norm", "kl"),
    [
        (fp8_channels(), 0.025, 0.002),
        (fp8_blocks(), 0.025, 0.002),
        (awq(128), 0.1, 0.03),
        (packed_int4(128), 0.11, 0.04),
        (packed_mxfp4(), 0.115, 0.05),
    ],
    ids=["fp8 channels", "fp8 blocks", "int4 with zero points", "int4", "mxfp4"],
)
def test_logits_stay_near(
    prompt: Sequence[int], expected: list[Tensor], tmp_path: Path, form: Form, norm: float, kl: float
) -> None:
    """Rounded to the nearest number without calibration; bounds are about a third above what was measured."""
    config = {"quantization_config": form.config}
    folder, _ = quantize_folder(FOLDER, tmp_path, form.stored_as, config=config)
    logits = logits_of(folder, [prompt], torch.float32)
    assert 0 < relative_norm(logits, expected) < norm
    assert 0 < mean_kl(logits, expected) < kl
