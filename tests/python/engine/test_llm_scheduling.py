"""quire.LLM: priority, deadlines and receipts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from quire import LLM, InvalidArgument, RequestTiming, SamplingParams, _core


@pytest.fixture(scope="module")
def llm(llama_folder: Callable[..., Path]) -> LLM:
    return LLM(
        str(llama_folder()),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=2,
        num_threads=1,
        scheduling_policy="priority",
    )


def params(**fields: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 8, "ignore_eos": True, **fields})  # type: ignore[arg-type]


def check_times(receipt: RequestTiming) -> None:
    stages = (receipt.tokenize_ms, receipt.queue_ms, receipt.prefill_ms, receipt.decode_ms)
    assert min(*stages, receipt.detokenize_ms) >= 0
    assert receipt.total_ms == pytest.approx(sum(stages) + receipt.detokenize_ms, rel=0.01)


def test_the_best_come_first(llm: LLM) -> None:
    """Two at a time in the order of their priorities; the answers are in the order of the prompts."""
    order: list[int] = []
    ids = {llm.add_request([i + 1] * 5, params(priority=p)): p for i, p in enumerate([3, 1, 2, 0, 1, -1])}
    while llm.has_unfinished_requests:
        order += [ids[output.request_id] for output in llm.step() if output.finish_reason]
    assert order == [-1, 0, 1, 1, 2, 3]


def test_fcfs_refuses_a_priority(llama_folder: Callable[..., Path]) -> None:
    """The error names the prompt and the setting."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=64, num_threads=1)
    with pytest.raises(InvalidArgument, match=r"prompts\[1\]: priority: got 1; .*scheduling_policy"):
        llm.generate(["a", "b"], [params(), params(priority=1)])


def test_a_deadline_ends_with_the_text_so_far(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on; what came by then is the beginning of the whole answer."""
    late_ns = 0
    config, table = llm._core.config, llm._core.token_table
    core = _core.EngineCore(config, table, clock=lambda: time.monotonic_ns() + late_ns)
    monkeypatch.setattr(llm, "_core", core)
    asked = [params(max_tokens=500, deadline_ms=3_600_000), params(max_tokens=500)]
    short, whole = (llm.add_request("x", fields) for fields in asked)
    tokens: dict[int, list[int]] = {short: [], whole: []}
    reasons = {}
    while llm.has_unfinished_requests:
        for output in llm.step():
            tokens[output.request_id] += output.token_ids
            reasons[output.request_id] = output.finish_reason
        if len(tokens[short]) >= 3:
            late_ns = 3_600_000_000_000
    assert reasons == {short: "deadline", whole: "length"}
    assert 3 <= len(tokens[short]) < 500 == len(tokens[whole])
    assert tokens[whole][: len(tokens[short])] == tokens[short]
    assert llm.stats().num_free_blocks == llm.stats().num_blocks


def test_a_deadline_without_a_token(llm: LLM) -> None:
    """step() says why; time passes for requests that wait, too."""
    request_id = llm.add_request("y" * 100, params(deadline_ms=1))
    time.sleep(0.005)
    [output] = llm.step()
    assert (output.request_id, output.text, output.finish_reason) == (request_id, "", "deadline")
    assert output.error.startswith("deadline exceeded: 1 ms (deadline_ms) passed")
    assert not llm.has_unfinished_requests


def test_receipts(llm: LLM) -> None:
    """With the end, when asked for: the times add up and fit into the call."""
    begin = time.monotonic()
    outputs = llm.generate(["z" * 40, "w" * 40, "v" * 40], params(max_tokens=20), return_receipt=True)
    measured_ms = 1000 * (time.monotonic() - begin)
    receipts = [output.outputs[0].receipt for output in outputs]
    for receipt in receipts:
        assert receipt is not None
        check_times(receipt)
        assert receipt.total_ms < measured_ms
        assert (receipt.prompt_tokens, receipt.output_tokens) == (40, 20)
        assert receipt.cached_tokens + receipt.computed_tokens == 59
    assert receipts[2] is not None
    assert receipts[2].waited_steps["rows"] > 0
    assert llm.generate("z", params())[0].outputs[0].receipt is None
    llm.add_request("z", params(), return_receipt=True)
    steps = []
    while llm.has_unfinished_requests:
        steps += llm.step()
    assert [step.receipt is not None for step in steps] == [False] * (len(steps) - 1) + [True]
