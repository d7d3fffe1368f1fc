"""Greedy ids equal Hugging Face transformers' in float32, however the work is cut into steps; sampling
repeats."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import step_modes
import torch
from quire import LLM, SamplingParams
from random_llama import FAMILIES, VOCAB_SIZE
from reference import check_greedy, next_token_logits

MODELS: dict[str, dict[str, Any]] = {
    "gqa-32": {},
    "mha-64": {"head_dim": 64, "num_key_value_heads": 4},
    "mqa-40-tied": {"head_dim": 40, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gqa-128-biases": {"head_dim": 128, "attention_bias": True, "mlp_bias": True},
    "gqa-256": {"head_dim": 256, "num_hidden_layers": 1},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}},
}
MODES = step_modes.MODES | {"two-threads": {"num_threads": 2}}
NUM_TOKENS = 24
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


def prompts(seed: int, count: int) -> list[list[int]]:
    """Random prompts around the sizes where blocks and chunks end."""
    generator = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, 33, 100]
    return [
        [generator.randrange(VOCAB_SIZE) for _ in range(length)]
        for length in (generator.choice(lengths) for _ in range(count))
    ]


def ids(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def check(folder: Path, given: list[list[int]], answers: list[list[int]], what: str) -> None:
    for index, (prompt, answer) in enumerate(zip(given, answers, strict=True)):
        check_greedy(folder, prompt, answer, NUM_TOKENS, f"{what}, prompt {index}")


@pytest.mark.parametrize("model", MODELS)
def test_alone(llama_folder: Callable[..., Path], model: str) -> None:
    """One request at a time."""
    folder = llama_folder(**MODELS[model])
    llm = LLM(str(folder), dtype="float32", max_model_len=256)
    given = prompts(1, 4)
    check(folder, given, [ids(llm.generate(prompt, GREEDY))[0] for prompt in given], model)


@pytest.mark.parametrize("model", FAMILIES)
def test_families(llama_folder: Callable[..., Path], model: str) -> None:
    """The families beside Llama, one request at a time and twelve at once."""
    folder = llama_folder(**FAMILIES[model])
    llm = LLM(str(folder), dtype="float32", max_model_len=256, max_num_batched_tokens=24, max_num_seqs=8)
    given = prompts(1, 4)
    check(folder, given, [ids(llm.generate(prompt, GREEDY))[0] for prompt in given], model)
    given = prompts(2, 12)
    check(folder, given, ids(llm.generate(given, GREEDY)), f"{model}, with batch mates")


# make test-fast: every model in one way, one model in every way.
MODELS_AND_MODES = [
    pytest.param(model, mode, marks=() if "gqa-32" == model or "chunked" == mode else pytest.mark.slow)
    for model in MODELS
    for mode in MODES
]


@pytest.mark.parametrize(("model", "mode"), MODELS_AND_MODES)
def test_with_batch_mates(llama_folder: Callable[..., Path], model: str, mode: str) -> None:
    """Twelve requests at once, under every way to cut the work into steps."""
    folder = llama_folder(**MODELS[model])
    llm = LLM(str(folder), dtype="float32", max_model_len=256, **MODES[mode])
    given = prompts(2, 12)
    check(folder, given, ids(llm.generate(given, GREEDY)), f"{model}, {mode}")


def test_preemption(llama_folder: Callable[..., Path]) -> None:
    """A pool that is too small for all: requests are thrown out, computed again, and say the same."""
    folder = llama_folder()
    llm = LLM(str(folder), dtype="float32", max_model_len=128, num_gpu_blocks_override=20, watermark=0.0)
    given = [prompt for prompt in prompts(3, 40) if len(prompt) <= 33][:16]
    check(folder, given, ids(llm.generate(given, GREEDY)), "preemption")
    stats = llm.stats()
    assert stats.num_preemptions > 0
    assert stats.num_free_blocks == stats.num_blocks == 20


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 24, "max_num_seqs": 8}], ids=["whole", "chunked"]
)
def test_prefix_reuse(llama_folder: Callable[..., Path], settings: dict[str, Any]) -> None:
    """Prompts that begin alike reuse the blocks and say the same as without."""
    folder = llama_folder()
    llm = LLM(str(folder), dtype="float32", max_model_len=256, **settings)
    generator = random.Random(4)
    beginning = [generator.randrange(VOCAB_SIZE) for _ in range(70)]
    given = [beginning + [generator.randrange(VOCAB_SIZE) for _ in range(n)] for n in (0, 1, 9, 10, 11, 40)]
    first = llm.generate(given[:1], GREEDY)
    assert first[0].num_cached_tokens == 0
    rest = llm.generate(given, GREEDY)
    # A prompt's last token is always computed, for its logits.
    assert [output.num_cached_tokens for output in rest] == [64] * len(given)
    usages = [output.outputs[0].usage for output in rest]
    assert [usage["num_prompt_tokens"] for usage in usages] == [len(prompt) for prompt in given]
    assert {usage["num_cached_tokens"] for usage in usages} == {64}
    check(folder, given, ids(rest), "prefix reuse")


def test_bfloat16_stays_near(llama_folder: Callable[..., Path]) -> None:
    """In bfloat16 each chosen token is, for the float32 reference, about as good as the best."""
    folder = llama_folder()
    llm = LLM(str(folder), dtype="bfloat16", max_model_len=256)
    given = prompts(5, 6)
    for prompt, answer in zip(given, ids(llm.generate(given, GREEDY)), strict=True):
        logits = next_token_logits(folder, prompt, answer)
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen).max() < 0.05 * logits.std() * 4


SAMPLED = [
    SamplingParams(temperature=1.0, seed=1, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=2, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.3, top_k=20, seed=3, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.8, seed=2**63 - 1, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=-5, min_tokens=10, max_tokens=20),
]


@pytest.mark.parametrize("mode", MODES)
def test_sampling_repeats_by_seed(llama_folder: Callable[..., Path], mode: str) -> None:
    """A request with a seed gets the same tokens alone and among others, in any order."""
    folder = llama_folder()
    given = prompts(6, len(SAMPLED))
    alone = LLM(str(folder), dtype="float32", max_model_len=256)
    expected = [ids(alone.generate(prompt, params))[0] for prompt, params in zip(given, SAMPLED, strict=True)]
    llm = LLM(str(folder), dtype="float32", max_model_len=256, **MODES[mode])
    mates = prompts(7, 9)
    answers = ids(llm.generate(mates + given[::-1], [SamplingParams(max_tokens=20)] * 9 + SAMPLED[::-1]))
    assert expected == answers[9:][::-1]


def test_sampling_differs_by_seed(llama_folder: Callable[..., Path]) -> None:
    """Other seeds give other tokens; so do requests without one."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=256)
    prompt = prompts(8, 1)[0]
    seeds: list[int | None] = [1, 2, None, None]
    params = [SamplingParams(temperature=2.0, seed=seed, max_tokens=30, ignore_eos=True) for seed in seeds]
    answers = ids(llm.generate([prompt] * len(params), params))
    assert len({tuple(answer) for answer in answers}) == len(params)
