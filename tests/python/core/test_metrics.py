"""What the core counts and observes for /metrics."""

from __future__ import annotations

import random
from typing import Any

import pytest
from core_helpers import Driver, make_core
from quire import _core

MS = 1_000_000
# Observed when a sequence ends with stop or length, or with the last of a request's.
OF_SEQUENCES = {
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_params_max_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:request_num_preemptions",
}
OF_REQUESTS = {"vllm:request_max_num_generation_tokens", "vllm:request_params_n"}


class Clock:
    """Time that a test sets, in milliseconds."""

    def __init__(self) -> None:
        self.ms = 5_000

    def __call__(self) -> int:
        return self.ms * MS


def close(values: list[float], *expected: float) -> bool:
    return values == pytest.approx(expected)


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_each_time_of_a_request(max_batches_in_flight: int) -> None:
    """arrival | tokenize | queue | prefill | decode: each histogram gets its part, in seconds."""
    clock = Clock()
    driver = Driver(make_core(clock=clock, max_batches_in_flight=max_batches_in_flight))
    arrival = clock()
    clock.ms += 20 + 5  # tokenized, and on its way
    driver.add(
        1, [1] * 9, max_tokens=4, ignore_eos=True, arrival_ns=arrival, tokenize_ns=20 * MS, temperature=0.0
    )
    clock.ms += 5
    for step_ms in (100, 10, 20, 60):
        driver.launch()
        clock.ms += step_ms
        driver.collect()
    seen = driver.observed
    assert close(seen["vllm:time_to_first_token_seconds"], 0.130)
    assert close(seen["vllm:inter_token_latency_seconds"], 0.010, 0.020, 0.060)
    assert close(seen["vllm:e2e_request_latency_seconds"], 0.220)
    assert close(seen["vllm:request_queue_time_seconds"], 0.010)
    assert close(seen["vllm:request_prefill_time_seconds"], 0.100)
    assert close(seen["vllm:request_decode_time_seconds"], 0.090)
    assert close(seen["vllm:request_inference_time_seconds"], 0.190)
    assert close(seen["vllm:request_time_per_output_token_seconds"], 0.030)
    assert seen["vllm:request_prompt_tokens"] == [9]
    assert seen["vllm:request_generation_tokens"] == [4]
    assert seen["vllm:request_params_max_tokens"] == [4]
    assert seen["vllm:request_prefill_kv_computed_tokens"] == [9]
    assert seen["vllm:request_num_preemptions"] == [0]
    assert seen["vllm:request_max_num_generation_tokens"] == [4]
    assert seen["vllm:request_params_n"] == [1]
    assert seen["vllm:iteration_tokens_total"] == [10, 1, 1, 1]


def test_one_token() -> None:
    """A request of one token has no gap, and a time per output token of 0, as in vLLM."""
    driver = Driver(make_core())
    driver.add(1, [1] * 9, max_tokens=1)
    driver.run()
    assert "vllm:inter_token_latency_seconds" not in driver.observed
    assert driver.observed["vllm:request_time_per_output_token_seconds"] == [0]
    assert driver.observed["vllm:request_decode_time_seconds"] == [0]


def test_an_arrival_that_has_not_come() -> None:
    """A client's clock cannot make a time negative."""
    clock = Clock()
    driver = Driver(make_core(clock=clock))
    driver.add(1, [1] * 9, max_tokens=1, arrival_ns=clock() + 10**12, tokenize_ns=10**12)
    driver.run()
    assert all(value >= 0 for values in driver.observed.values() for value in values)


def test_a_gap_spans_what_a_preemption_takes() -> None:
    """One gap for each step that gives a sequence tokens, over preemptions, which are counted once."""
    driver = Driver(make_core(num_blocks=6, block_size=4, enable_prefix_caching=False))
    for request_id in range(3):
        driver.add(request_id, [request_id] * 8, max_tokens=9, ignore_eos=True)
    driver.run()
    seen, stats = driver.observed, driver.core.stats()
    assert len(seen["vllm:inter_token_latency_seconds"]) == 3 * (9 - 1)
    assert sum(seen["vllm:request_num_preemptions"]) == stats.num_preemptions > 0
    assert stats.num_prompt_tokens == stats.num_computed_prompt_tokens == 3 * 8
    assert sum(seen["vllm:iteration_tokens_total"]) == 3 * (8 + 9)


def test_cached_tokens() -> None:
    """Prompt tokens are those computed and those cached, by the same rule in counters and histograms."""
    driver = Driver(make_core())
    for request_id in range(2):
        driver.add(request_id, [7] * 33, max_tokens=2, ignore_eos=True)
        driver.run()
    stats = driver.core.stats()
    assert (stats.num_computed_prompt_tokens, stats.num_cached_prompt_tokens) == (33 + 1, 32)
    assert stats.num_prompt_tokens == 66
    assert driver.observed["vllm:request_prefill_kv_computed_tokens"] == [33, 1]


def test_several_sequences() -> None:
    """Each sequence is one of vLLM's requests; n and the longest are observed with the last of them."""
    driver = Driver(make_core())
    driver.add(1, [3] * 22, n=5, max_tokens=6)
    driver.run()
    lengths = [len(sequence.sampled) for sequence in driver.sequences.values()]
    seen = driver.observed
    assert sorted(seen["vllm:request_generation_tokens"]) == sorted(lengths)
    assert seen["vllm:request_params_n"] == [5]
    assert seen["vllm:request_max_num_generation_tokens"] == [max(lengths)]
    assert seen["vllm:request_prompt_tokens"] == [22] * 5
    assert sum(seen["vllm:request_prefill_kv_computed_tokens"]) == 22
    assert len(seen["vllm:time_to_first_token_seconds"]) == 5


def test_early_ends_are_counted_and_not_timed() -> None:
    """A cancelled request, one past its deadline and one that fails have no part in the histograms of a
    sequence's end."""
    clock = Clock()
    driver = Driver(make_core(clock=clock))
    for request_id in range(3):
        deadline = clock() + 50 * MS if request_id == 1 else 0
        driver.add(request_id, [5] * 9, n=2, max_tokens=20, ignore_eos=True, deadline_ns=deadline)
    driver.step()
    driver.core.cancel(0)
    driver.core.fail(2, "for a reason")
    clock.ms += 100
    driver.run()
    stats = driver.core.stats()
    assert (stats.num_aborted, stats.num_failed) == (4, 2)
    assert (stats.num_stopped, stats.num_at_length) == (0, 0)
    assert not (OF_SEQUENCES | OF_REQUESTS) & driver.observed.keys()


def test_a_refused_request_counts_nowhere() -> None:
    """What never got in is no request of the engine's."""
    driver = Driver(make_core())
    driver.core.fail(1, "no room")
    driver.core.take_outputs()
    assert driver.core.stats().num_failed == 0


def test_nothing_is_observed_where_stats_are_off() -> None:
    """disable_log_stats: no observation travels, and counters still count."""
    driver = Driver(make_core(disable_log_stats=True))
    driver.add(1, [1] * 9, n=2, max_tokens=4, ignore_eos=True)
    driver.run()
    assert driver.observed == {}
    assert driver.core.stats().num_generation_tokens == 8


def test_what_the_runner_reports() -> None:
    """It is in the outputs that were made, and in all later ones; a name that no figure has is refused."""
    driver = Driver(make_core())
    driver.add(1, [1] * 9, max_tokens=2, ignore_eos=True)
    driver.step()
    driver.core.report("graph_replays", 7)
    driver.core.observe_step_host(250_000)
    outputs = driver.core.outputs()
    assert outputs.stats.graph_replays == 7
    assert ("quire:step_host_seconds", pytest.approx(0.00025), 1) in outputs.observations
    driver.step()
    assert driver.core.outputs().stats.graph_replays == driver.core.stats().graph_replays == 7
    with pytest.raises(_core.InvalidArgument, match="graph_plays"):
        driver.core.report("graph_plays", 1)


@pytest.mark.parametrize("seed", range(6))
def test_counters_and_histograms_agree(seed: int) -> None:
    """Whatever runs: counts of histograms are those of sequences, and their sums those of the counters."""
    random_ = random.Random(seed)
    driver = Driver(make_core(num_blocks=24, block_size=4, max_num_seqs=6, max_num_batched_tokens=16))
    for request_id in range(30):
        fields: dict[str, Any] = {"max_tokens": random_.randint(1, 12), "n": random_.choice([1, 1, 3])}
        prompt = [random_.choice([1, 2])] * random_.randint(1, 30)
        driver.add(request_id, prompt, ignore_eos=random_.random() < 0.5, **fields)
        for _ in range(random_.randint(0, 2)):
            driver.step(cancel=[request_id] if random_.random() < 0.1 else [])
    driver.run()
    seen, stats = driver.observed, driver.core.stats()
    sequences = list(driver.sequences.values())
    ends = {reason: sum(s.finish_reason == reason for s in sequences) for reason in ("stop", "length")}
    assert (stats.num_stopped, stats.num_at_length) == (ends["stop"], ends["length"])
    assert stats.num_aborted == len(sequences) - sum(ends.values())
    assert all(len(seen[series]) == sum(ends.values()) for series in OF_SEQUENCES)
    started = [s for s in sequences if s.released or s.finish_reason in ends]  # the core took an id
    assert len(seen["vllm:time_to_first_token_seconds"]) == len(started)
    assert stats.num_prompt_tokens == sum(len(s.prompt) for s in started)
    assert stats.num_prompt_tokens == stats.num_computed_prompt_tokens + stats.num_cached_prompt_tokens
    gaps = seen.get("vllm:inter_token_latency_seconds", [])
    assert len(gaps) == stats.num_generation_tokens - len(started)
    tokens = stats.num_prompt_tokens + stats.num_generation_tokens
    assert sum(seen["vllm:iteration_tokens_total"]) == tokens
    assert len(seen["vllm:iteration_tokens_total"]) == stats.step
