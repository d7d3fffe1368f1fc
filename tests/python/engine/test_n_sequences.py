"""n > 1 on the CPU engine: each sequence is what a request with its seed gets alone, whatever it shares."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _core_parts
import numpy as np
import pytest
import step_modes
from quire import LLM, InvalidArgument, SamplingParams
from random_llama import VOCAB_SIZE, with_batches_in_flight

MODES = step_modes.MODES | {
    "few-seats": {"max_num_seqs": 3},
    "preemption": {"max_model_len": 128, "num_gpu_blocks_override": 18, "watermark": 0.0},
}
SIZES = (1, 2, 15, 16, 17, 33, 64)
VALUES: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "max_tokens": 20, "ignore_eos": True}


def prompts(seed: int) -> list[list[int]]:
    """Their ends lie around those of blocks."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(size)] for size in SIZES]


def derived(seed: int, index: int) -> int:
    """The seed of a request with n = 1 that draws as sequence `index`."""
    return int(np.uint64(_core_parts.sequence_seed(seed % 2**64, index)).astype(np.int64))


def make(folder: Path, **settings: Any) -> LLM:
    return LLM(str(folder), **{"dtype": "float32", "max_model_len": 256} | settings)


@pytest.fixture(scope="module")
def alone(llama_folder: Callable[..., Path]) -> LLM:
    return make(llama_folder())


@pytest.mark.parametrize("batches_in_flight", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_sequences(llama_folder: Callable[..., Path], alone: LLM, mode: str, batches_in_flight: int) -> None:
    """All sizes at once, with mates: nobody's keys and values are disturbed, and at last all blocks are
    free."""
    llm = make(llama_folder(), **MODES[mode])
    llm._core = with_batches_in_flight(llm, batches_in_flight)
    llm._engine.runner.max_batches_in_flight = batches_in_flight  # type: ignore[misc]
    given = prompts(1)
    params = [SamplingParams(n=1 + i % 5, seed=i - 9, **VALUES) for i in range(len(given))]
    mates = SamplingParams(**VALUES | {"temperature": 0})
    outputs = llm.generate(given + prompts(2), params + [mates] * len(given))[: len(given)]
    for i, output in enumerate(outputs):
        assert [completion.index for completion in output.outputs] == list(range(1 + i % 5))
        for index, completion in enumerate(output.outputs):
            one = SamplingParams(seed=derived(i - 9, index), **VALUES)
            [expected] = alone.generate([given[i]], one)[0].outputs
            assert completion.token_ids == expected.token_ids, f"prompt of {SIZES[i]}, sequence {index}"
            assert completion.text == expected.text
    stats = llm.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert (stats.num_preemptions > 0) == (mode == "preemption")


def test_blocks_are_shared(llama_folder: Callable[..., Path]) -> None:
    """Eight sequences over a prompt of 200 tokens hold its 12 full blocks of 16 once."""
    llm = make(llama_folder(), enable_prefix_caching=False)
    llm.add_request([7] * 200, SamplingParams(n=8, seed=1, **VALUES))
    most = 0
    while llm.has_unfinished_requests:
        llm.step()
        stats = llm.stats()
        most = max(most, stats.num_blocks - stats.num_free_blocks)
    assert most == 12 + 8 * 2  # 219 tokens need KV: two blocks behind the shared ones
    assert llm.stats().num_computed_prompt_tokens == 200
    assert llm.stats().num_prompt_tokens == 8 * 200
    assert llm.stats().num_generation_tokens == 8 * 20


def test_streams(llama_folder: Callable[..., Path]) -> None:
    """step() says which sequence an output is of; each has an end, and the request is open until the last."""
    llm = make(llama_folder())
    params = SamplingParams(n=3, seed=5, stop_token_ids=list(range(0, 300, 9)), **VALUES)
    [whole] = llm.generate([[3, 4, 5]], params)
    request_id = llm.add_request([3, 4, 5], params)
    texts, ids, ends = ["", "", ""], [[], [], []], [""] * 3  # type: ignore[var-annotated]
    while llm.has_unfinished_requests:
        for output in llm.step():
            assert output.request_id == request_id
            texts[output.sequence_index] += output.text
            ids[output.sequence_index] += output.token_ids
            assert not ends[output.sequence_index]
            ends[output.sequence_index] = output.finish_reason
    for index, completion in enumerate(whole.outputs):
        assert completion.text == texts[index]
        assert list(completion.token_ids) == ids[index]
        assert completion.finish_reason == ends[index]
    assert len({len(ids) for ids in ids}) > 1, "they end at different steps"


def test_penalties_and_biases(llama_folder: Callable[..., Path], alone: LLM) -> None:
    """Each sequence counts its own tokens, and knows those of the shared prompt."""
    edits: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "min_p": 0.01}
    edits |= {"allowed_token_ids": list(range(0, 200, 2)), "logit_bias": {4: 3.0}}
    llm = make(llama_folder(), max_num_seqs=3)
    [output] = llm.generate([prompts(3)[4]], SamplingParams(n=4, seed=5, **edits, **VALUES))
    for index, completion in enumerate(output.outputs):
        [expected] = alone.generate(
            [prompts(3)[4]], SamplingParams(seed=derived(5, index), **edits, **VALUES)
        )
        assert completion.token_ids == expected.outputs[0].token_ids


def test_logprobs(llama_folder: Callable[..., Path], alone: LLM) -> None:
    """Each sequence has its own; the prompt's come once."""
    llm = make(llama_folder())
    [output] = llm.generate([[3, 4, 5]], SamplingParams(n=3, seed=5, logprobs=2, prompt_logprobs=1, **VALUES))
    for index, completion in enumerate(output.outputs):
        one = SamplingParams(seed=derived(5, index), logprobs=2, prompt_logprobs=1, **VALUES)
        [expected] = alone.generate([[3, 4, 5]], one)
        assert completion.logprobs is not None
        assert expected.outputs[0].logprobs is not None
        assert len(completion.logprobs) == 20
        for given, wanted in zip(completion.logprobs, expected.outputs[0].logprobs, strict=True):
            assert given.keys() == wanted.keys()
            for token_id, logprob in given.items():
                assert logprob.logprob == pytest.approx(wanted[token_id].logprob, abs=1e-4)
        assert completion.cumulative_logprob == pytest.approx(
            expected.outputs[0].cumulative_logprob, abs=1e-3
        )
        assert output.prompt_logprobs is not None
        assert expected.prompt_logprobs is not None
        assert len(output.prompt_logprobs) == len(expected.prompt_logprobs) == 3


def test_cancelling_ends_every_sequence(llama_folder: Callable[..., Path]) -> None:
    llm = make(llama_folder())
    request_id = llm.add_request([3, 4, 5], SamplingParams(n=4, seed=5, **VALUES))
    llm.step()
    llm.cancel(request_id)
    ended = [output for output in llm.step() if output.finish_reason == "cancelled"]
    assert sorted(output.sequence_index for output in ended) == [0, 1, 2, 3]
    assert not llm.has_unfinished_requests


def test_greedy_sequences_are_refused(alone: LLM) -> None:
    """All would be the same, and the error says so."""
    with pytest.raises(InvalidArgument, match=r"n: got 2 with temperature 0; allowed: 1 .*the same"):
        alone.generate("a", SamplingParams(n=2, temperature=0))
