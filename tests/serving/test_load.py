"""Many requests at once: all answered, short ones do not wait for long ones, nothing is left behind."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from client import generate, generate_stream, metrics, wait_until
from quire.triton.perf_analyzer import find_perf_analyzer, recorded_requests
from quire.triton.server import TritonServer


def idle(server: TritonServer) -> bool:
    """No request is running or waiting, and every KV block is free."""
    values = metrics(server.metrics_url)
    return (
        values["vllm:num_requests_running"] == 0
        and values["vllm:num_requests_waiting"] == 0
        and values["quire:kv_blocks_free"] == values["quire:kv_blocks_total"] > 0
    )


def test_a_hundred_requests_at_once_are_all_answered_and_leave_no_block_behind(server: TritonServer) -> None:
    """Each answer is that of the same request alone; streaming and not streaming mixed."""
    bodies = [
        {"text_input": f"def function_{i % 10}(", "temperature": 0, "max_tokens": 8 + i % 10}
        for i in range(100)
    ]
    alone = [
        generate(server.http_url, body | {"exclude_input_in_output": True})["text_output"]
        for body in bodies[:10]
    ]

    def ask(i: int) -> str:
        if i % 2:
            events = generate_stream(server.http_url, bodies[i] | {"stream": True})
            return "".join(event["text_output"] for event in events)
        answer = generate(server.http_url, bodies[i] | {"exclude_input_in_output": True})
        return str(answer["text_output"])

    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(ask, range(100)))
    assert [alone[i % 10] for i in range(100)] == answers
    wait_until(lambda: idle(server), what="all blocks free after the load")


def test_a_short_request_sent_last_finishes_before_a_long_one_sent_first(server: TritonServer) -> None:
    """Continuous batching: the short one joins the running batch."""
    started = threading.Event()
    finished: dict[str, float] = {}

    def long() -> None:
        body = {"text_input": "import os", "stream": True, "ignore_eos": True, "max_tokens": 1500}
        for _ in generate_stream(server.http_url, body):
            started.set()
        finished["long"] = time.monotonic()

    thread = threading.Thread(target=long)
    thread.start()
    assert started.wait(60)
    generate(server.http_url, {"text_input": "import sys", "ignore_eos": True, "max_tokens": 4})
    finished["short"] = time.monotonic()
    thread.join(120)
    assert finished["short"] < finished["long"]


def test_perf_analyzer_measures_the_ensemble(server: TritonServer, tmp_path: Path) -> None:
    """NVIDIA's own load tool runs against the ensemble without an option of ours, and loses no token."""
    tokens, requests = 16, 24
    parameters = json.dumps(
        {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0}
    )
    data = [
        {
            "text_input": {"content": [f"def f{i}("], "shape": [1]},
            "stream": {"content": [True], "shape": [1]},
            "sampling_parameters": {"content": [parameters], "shape": [1]},
        }
        for i in range(requests)
    ]
    load, profile = tmp_path / "load.json", tmp_path / "profile.json"
    load.write_text(json.dumps({"data": data}))
    executable, environment = find_perf_analyzer(tmp_path / "lib")
    command = [
        str(executable), "-m", "ensemble", "-i", "grpc", "--async", "--streaming", "-u", server.grpc_url,
        "--input-data", str(load), "--concurrency-range", "4", "--request-count", str(requests),
        "--profile-export-file", str(profile), "--max-threads", "4",
    ]  # fmt: skip
    before = metrics(server.metrics_url)["vllm:generation_tokens_total"]
    rows = recorded_requests(command, environment, profile, timeout=240)
    assert len(rows) >= requests
    assert all(row["response_timestamps"] for row in rows)
    made = metrics(server.metrics_url)["vllm:generation_tokens_total"] - before
    assert made >= requests * tokens
    wait_until(lambda: idle(server), what="all blocks free after perf_analyzer")
