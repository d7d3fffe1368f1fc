"""Scrapes under a mixed load, and at its end every counter against what the clients saw."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from client import GrpcStream, HttpError, generate, generate_stream, text_inputs, wait_until
from metrics_page import Page
from quire.triton.server import TritonServer

LONG = {"max_tokens": 1900, "min_tokens": 1900, "ignore_eos": True, "temperature": 0}
TOLD = {"return_finish_reason": True, "return_num_output_tokens": True, "return_receipt": True}
# What one client asks: by how it is sent. Prompts come again, so that the prefix cache has them.
PROMPT = "def fibonacci(n):\n    '''Return the n-th number of the sequence, which begins with 0 and 1.'''\n"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("stream", {"text_input": PROMPT, "max_tokens": 30, "ignore_eos": True}),
    ("stream", {"text_input": "import os\n", "max_tokens": 20, "temperature": 0}),
    (
        "stream",
        {
            "text_input": PROMPT,
            "max_tokens": 40,
            "temperature": 0,
            "sampling_parameters": '{"stop": [" "]}',
        },
    ),
    ("stream", {"text_input": "class Tree:\n", "max_tokens": 12, "n": 3, "seed": 7}),
    ("whole", {"text_input": PROMPT, "max_tokens": 25, "repetition_penalty": 1.3, "frequency_penalty": 0.5}),
    ("whole", {"text_input": "x = [", "max_tokens": 9, "n": 2, "seed": 3, "ignore_eos": True}),
    ("whole", {"text_input": "def main():\n", "max_tokens": 16, "logprobs": 2, "min_p": 0.1}),
    ("stream", {"text_input": "for i in", "max_tokens": 1, "temperature": 0}),
    ("unary", {"text_input": ["a = 1\n", "b = 2\n", PROMPT], "max_tokens": 8, "ignore_eos": True}),
    ("invalid", {"text_input": "x", "temperature": -1}),
    ("invalid", {"text_input": "x", "max_tokens": 10, "min_tokens": 11}),
    ("invalid", {"text_input": "x " * 5000}),
    ("late", {"text_input": "while True:\n", "deadline_ms": 150, **LONG}),
    ("late", {"text_input": "y", "deadline_ms": 1, **LONG}),
]


@dataclass
class Seen:
    """What the clients were told, all of them together."""

    receipts: list[dict[str, Any]] = field(
        default_factory=list
    )  # of sequences that ended with stop or length
    reasons: Counter[str] = field(default_factory=Counter)
    numbers_of_sequences: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    max_tokens: int = 0
    num_responses: int = 0  # a run of one sequence each
    num_output_tokens: int = 0
    num_forked: int = 0  # sequences that share a prompt which was computed for another
    late_tokens: list[tuple[int, int]] = field(
        default_factory=list
    )  # (prompt, output) of those past a deadline
    num_late: int = 0
    num_late_outside: int = 0  # of them, those that the engine never saw
    num_invalid: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, address: str, kind: str, body: dict[str, Any]) -> None:
        if kind == "invalid":
            with pytest.raises(HttpError):
                generate(address, body)
            with self._lock:
                self.num_invalid += 1
            return
        model = "ensemble_unary" if kind == "unary" else "ensemble"
        try:
            if kind in ("stream", "late"):
                events = list(generate_stream(address, body | TOLD | {"stream": True}))
            else:
                events = [generate(address, body | TOLD, model)]
        except HttpError as error:
            events = [{"error": error.message}]
        with self._lock:
            self.take(kind, body, events)

    def take(self, kind: str, body: dict[str, Any], events: list[dict[str, Any]]) -> None:
        if kind == "late" and "error" in events[-1]:
            assert len(events) == 1, events
            assert "deadline exceeded" in events[0]["error"]
            self.num_late += 1
            self.num_late_outside += "before the engine had the request" in events[0]["error"]
            return
        for event in events:
            counts = listed(event["num_output_tokens"])
            self.num_output_tokens += sum(counts)
            self.num_responses += len(counts)
        reasons = [r for event in events for r in listed(event["finish_reason"]) if r != "None"]
        receipts = [json.loads(r) for event in events for r in listed(event.get("receipt", [])) if r]
        assert len(reasons) == len(receipts)
        self.reasons.update(reasons)
        if kind == "late":
            assert reasons == ["deadline"]
            self.num_late += 1
            self.late_tokens += [(r["prompt_tokens"], r["output_tokens"]) for r in receipts]
            return
        self.receipts += receipts
        n = int(body.get("n", 1))
        num_prompts = len(listed(body["text_input"]))
        self.numbers_of_sequences += [n] * num_prompts
        self.max_tokens += len(receipts) * int(body["max_tokens"])
        outputs = [r["output_tokens"] for r in receipts]
        self.longest += [max(outputs)] if n > 1 else outputs

    def total(self, name: str) -> int:
        return sum(receipt[name] for receipt in self.receipts)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.fixture
def own_server(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    with TritonServer(make_repository(max_num_seqs=8)) as running:
        yield running


class Scraper(threading.Thread):
    """Scrapes until it is stopped; what only goes up must never go down."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.stopped = threading.Event()
        self.num_scrapes = 0
        self.errors: list[str] = []

    def run(self) -> None:
        last: dict[Any, float] = {}
        while not self.stopped.wait(0.05):
            now = Page.scrape(self.url).ours()
            rising = {k: v for k, v in now.items() if k[0].endswith(("_total", "_bucket", "_count", "_sum"))}
            self.errors += [str(key) for key, value in last.items() if rising.get(key, -1) < value]
            last = rising
            self.num_scrapes += 1


def cancel_one_that_waits(server: TritonServer) -> None:
    """All places are taken, so that the engine generates nothing for it; then the places are given back."""
    page = lambda: Page.scrape(server.metrics_url)  # noqa: E731
    body = {"text_input": "import os", "stream": True, **LONG}
    with ThreadPoolExecutor(8) as pool:
        streams = [generate_stream(server.http_url, body) for _ in range(8)]
        list(pool.map(next, streams))
        inputs = text_inputs(text_input="z", stream=True, sampling_parameters=LONG)
        with GrpcStream(server.grpc_url, inputs):
            wait_until(lambda: page().value("vllm:num_requests_waiting") == 1)
        wait_until(lambda: page().value("quire:requests_cancelled_total") == 1)
        for events in streams:
            events.close()
    wait_until(lambda: page().value("quire:requests_cancelled_total") == 9)
    wait_until(lambda: page().value("vllm:num_requests_running") == 0)


def test_a_mixed_load(own_server: TritonServer) -> None:
    """While requests of all kinds end in all ways, each scrape parses and nothing falls; at the end every
    counter, and the count and sum of every histogram, is what the clients were told."""
    server = own_server
    cancel_one_that_waits(server)
    before = Page.scrape(server.metrics_url)
    seen = Seen()
    scraper = Scraper(server.metrics_url)
    scraper.start()
    load = [(kind, body) for _ in range(3) for kind, body in REQUESTS]
    try:
        with ThreadPoolExecutor(12) as pool:
            for done in [pool.submit(seen.ask, server.http_url, kind, body) for kind, body in load]:
                done.result()
    finally:
        scraper.stopped.set()
        scraper.join()
    assert scraper.errors == []
    assert scraper.num_scrapes > 2

    after = Page.scrape(server.metrics_url)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, model_name="ensemble", **labels) - before.value(
            name, model_name="ensemble", **labels
        )

    reasons = seen.reasons
    num_ended = len(seen.receipts)
    assert num_ended == reasons["stop"] + reasons["length"] > 0
    assert reasons["stop"] > 0
    assert seen.num_late == 6

    success = "vllm:request_success_total"
    assert grown(success, finished_reason="stop") == reasons["stop"]
    assert grown(success, finished_reason="length") == reasons["length"]
    assert grown(success, finished_reason="abort") == seen.num_late - seen.num_late_outside
    assert grown(success, finished_reason="error") == 0
    assert grown("quire:deadline_misses_total") == seen.num_late
    assert grown("quire:requests_refused_total", reason="invalid") == seen.num_invalid
    assert grown("quire:requests_refused_total") == seen.num_invalid
    assert grown("quire:requests_cancelled_total") == 0

    prompts = [r["prompt_tokens"] for r in seen.receipts] + [prompt for prompt, _ in seen.late_tokens]
    outputs = [r["output_tokens"] for r in seen.receipts] + [output for _, output in seen.late_tokens]
    assert grown("vllm:prompt_tokens_total") == sum(prompts)
    assert grown("vllm:generation_tokens_total") == sum(outputs) == seen.num_output_tokens
    by_source = "vllm:prompt_tokens_by_source_total"
    assert grown(by_source) == sum(prompts)
    for same in ("vllm:prompt_tokens_cached_total", "vllm:prompt_tokens_cached_by_source_total"):
        assert grown(same) == grown(by_source, source="local_cache_hit") > 0
    assert grown("vllm:num_preemptions_total") == seen.total("preemptions")

    def histogram(name: str) -> tuple[float, float]:
        return grown(f"{name}_count"), grown(f"{name}_sum")

    assert histogram("vllm:request_prompt_tokens") == (num_ended, seen.total("prompt_tokens"))
    assert histogram("vllm:request_generation_tokens") == (num_ended, seen.total("output_tokens"))
    assert histogram("vllm:request_params_max_tokens") == (num_ended, seen.max_tokens)
    assert histogram("vllm:request_num_preemptions") == (num_ended, seen.total("preemptions"))
    assert grown("vllm:request_prefill_kv_computed_tokens_count") == num_ended
    numbers = seen.numbers_of_sequences
    assert histogram("vllm:request_params_n") == (len(numbers), sum(numbers))
    assert histogram("vllm:request_max_num_generation_tokens") == (len(numbers), sum(seen.longest))
    assert grown("vllm:iteration_tokens_total_sum") == sum(prompts) + sum(outputs)
    assert grown("vllm:iteration_tokens_total_count") == grown("quire:engine_steps_total")
    assert grown("vllm:time_to_first_token_seconds_count") == len(outputs)
    for gaps in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        assert grown(f"{gaps}_count") == sum(outputs) - len(outputs)
    assert histogram("quire:response_tokens") == (seen.num_responses, sum(outputs))

    # Receipts are rounded to microseconds.
    rounding = pytest.approx
    stages = {"queue": "queue_ms", "prefill": "prefill_ms", "decode": "decode_ms"}
    for stage, told in stages.items():
        seconds = rounding(seen.total(told) / 1000, abs=2e-6 * num_ended)
        assert histogram(f"vllm:request_{stage}_time_seconds") == (num_ended, seconds)
        assert grown("quire:stage_seconds_sum", stage=stage) == seconds
    whole = sum(seen.total(name) for name in ("tokenize_ms", *stages.values())) / 1000
    assert histogram("vllm:e2e_request_latency_seconds") == (
        num_ended,
        rounding(whole, abs=2e-6 * num_ended),
    )
    inference = (seen.total("prefill_ms") + seen.total("decode_ms")) / 1000
    assert histogram("vllm:request_inference_time_seconds") == (
        num_ended,
        rounding(inference, abs=2e-6 * num_ended),
    )
    assert grown("vllm:request_time_per_output_token_seconds_count") == num_ended
    num_asked = len(load) - seen.num_invalid
    assert grown("quire:stage_seconds_count", stage="tokenize") == num_asked
    assert grown("quire:stage_seconds_count", stage="to_generation") == num_asked
    assert after.value("vllm:num_requests_running") == after.value("vllm:num_requests_waiting") == 0
    assert after.value("vllm:kv_cache_usage_perc") == 0


def test_a_client_that_leaves_is_counted(own_server: TritonServer) -> None:
    """In the middle of its stream: once, as cancelled, and its tokens are those of its steps."""
    inputs = text_inputs(text_input="import os", stream=True, sampling_parameters=LONG)
    with GrpcStream(own_server.grpc_url, inputs) as stream:
        next(iter(stream))
    page = lambda: Page.scrape(own_server.metrics_url)  # noqa: E731
    wait_until(lambda: page().value("vllm:num_requests_running") == 0)
    wait_until(lambda: page().value("quire:requests_cancelled_total") == 1)
    after = page()
    assert after.value("vllm:request_success_total", finished_reason="abort") == 1
    assert after.value("vllm:request_success_total") == 1
    assert after.value("vllm:e2e_request_latency_seconds_count") == 0
    gaps = after.value("vllm:inter_token_latency_seconds_count")
    assert after.value("vllm:generation_tokens_total") == gaps + 1
    assert after.value("quire:requests_refused_total") == 0
