"""The GPU tests' own Llama and its relatives say what Hugging Face transformers says. Needs no GPU."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from llama_models import MODELS
from llama_reference import ReferenceLlama, gaps, make_llama


@pytest.mark.parametrize("model", MODELS)
def test_equals_transformers(tmp_path: Path, model: str) -> None:
    """Logits after every token, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        transformers = pytest.importorskip("transformers")
    folder = make_llama(tmp_path / model, seed=1, **MODELS[model])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(
        0, MODELS[model].get("vocab_size", 512), (150,), generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0]
    actual = ReferenceLlama(folder).logits(ids.tolist())
    assert (actual - expected).norm() / expected.norm() < 2e-5


def test_gaps(tmp_path: Path) -> None:
    """0 where the answer is the reference's own, several deviations where it is not."""
    folder = make_llama(tmp_path)
    prompt, answer = [5, 6, 7], []
    for _ in range(5):
        answer.append(int(ReferenceLlama(folder).logits(prompt + answer)[-1].argmax()))
    assert gaps(folder, prompt, answer).tolist() == [0.0] * 5
    wrong = [*answer[:4], (answer[4] + 1) % 512]
    assert gaps(folder, prompt, wrong)[:4].tolist() == [0.0] * 4
    assert gaps(folder, prompt, wrong)[4] > 0.5
