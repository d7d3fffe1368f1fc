"""The model that comes with the repository says in our engine what it says in transformers."""

from __future__ import annotations

import pytest
from quire import LLM, SamplingParams
from quire.model_path import resolve_model
from quire.tokenizer import Tokenizer
from reference import assert_same, greedy

TEXTS = [
    "def fibonacci(n):",
    "import os\n",
    "class Stack:\n    def push(self, item):",
    "\n",
    "x = [1, 2, 3]\n" * 30,
]


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 40, "max_num_seqs": 3}], ids=["whole", "chunked"]
)
def test_greedy_ids_equal_transformers(settings: dict[str, int]) -> None:
    """All prompts at once, in float32."""
    folder = resolve_model("quire-8m")
    llm = LLM("quire-8m", dtype="float32", max_model_len=512, num_threads=1, **settings)
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True))
    for text, output in zip(TEXTS, outputs, strict=True):
        prompt = tuple(Tokenizer(folder).encode(text))
        assert prompt == output.prompt_token_ids
        assert_same(greedy(folder, prompt, 48), list(output.outputs[0].token_ids), repr(text[:20]))
