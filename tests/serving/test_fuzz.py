"""Ten thousand requests with wild fields and tensors on a live server: no crash, each bad one is answered
with its field named, and the good ones in between are all correct.

QUIRE_FUZZ_SEED chooses other requests, QUIRE_FUZZ_REQUESTS their number.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from client import generate, metrics, wait_until
from fuzz_cases import MAX_TOKENS, PROMPTS, Case, CaseMaker
from fuzz_tensors import TensorFuzzer
from quire.tokenizer import Tokenizer
from quire.triton.server import TritonServer

MODEL = Path(__file__).parents[2] / "models" / "quire-8m"

SEED = os.environ.get("QUIRE_FUZZ_SEED", "1")
NUM_REQUESTS = int(os.environ.get("QUIRE_FUZZ_REQUESTS", "10000"))
NUM_TENSOR_REQUESTS = NUM_REQUESTS // 10
NUM_CONNECTIONS = 12

Answers = dict[tuple[str, int], str]


def greedy_answers(server: TritonServer) -> Answers:
    """What a quiet server answers to the good requests."""
    answers = {}
    for prompt in PROMPTS:
        for count in range(1, MAX_TOKENS + 1):
            body = {
                "text_input": prompt,
                "max_tokens": count,
                "temperature": 0,
                "exclude_input_in_output": True,
            }
            answers[prompt, count] = generate(server.http_url, body)["text_output"]
    return answers


class HttpClient:
    """One connection that stays open."""

    def __init__(self, server: TritonServer, answers: Answers) -> None:
        host, port = server.http_url.removeprefix("http://").split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.answers = answers

    def problem(self, case: Case) -> str:
        """What is wrong with the answer to `case`; "" when it is as it must be."""
        path = "/v2/models/ensemble/generate" + ("_stream" if case.stream else "")
        self.connection.request("POST", path, case.body)
        response = self.connection.getresponse()
        status, raw = response.status, response.read()
        events = [line[len(b"data: ") :] for line in raw.split(b"\n") if line.startswith(b"data: ")]
        answers = [json.loads(event) for event in events or [raw]]
        error = "".join(answer.get("error", "") for answer in answers)
        if case.status_only:
            return "" if status >= 400 and error else f"HTTP {status}: {raw[:200]!r}"
        if case.error:
            is_refused = status == 400 or case.stream
            return "" if is_refused and case.error in error else f"HTTP {status}: {error[:300]}"
        if status != 200 or error:
            return f"HTTP {status}: {error[:300]}"
        texts = [text for answer in answers for text in texts_of(answer)]
        if not case.stream and len(texts) != case.n:
            return f"{len(texts)} texts instead of {case.n}"
        if case.expects is not None and "".join(texts) != self.answers[case.expects]:
            return f"{texts!r} instead of {self.answers[case.expects]!r}"
        return ""


def texts_of(answer: dict[str, Any]) -> list[str]:
    """One, or those of n > 1 sequences."""
    text = answer["text_output"]
    return text if isinstance(text, list) else [text]


def in_parallel(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


def test_wild_requests_on_a_live_server(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    """HTTP generate with wild parameters and JSON, and gRPC tensors of `generation`, all at the same time."""
    model = json.loads((MODEL / "config.json").read_text())
    limits = (model["max_position_embeddings"], model["vocab_size"])
    answers = greedy_answers(server)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    lock = threading.Lock()

    def report(kind: str, what: object, problem: str) -> None:
        with lock:
            counts[kind] += 1
            if problem:
                shown = str(what)
                shown = shown if len(shown) <= 500 else f"{shown[:150]} ... {shown[-350:]}"
                problems.append(f"{shown}\n    {problem}")

    def http_worker(index: int) -> None:
        maker = CaseMaker(f"{SEED} {index}", Tokenizer(MODEL), *limits)
        client = HttpClient(server, answers)
        with contextlib.closing(client.connection):
            for _ in range((NUM_REQUESTS - NUM_TENSOR_REQUESTS) // NUM_CONNECTIONS):
                case = maker.make()
                kind = "bad" if case.error or case.status_only else "compared" if case.expects else "good"
                report(kind, case.body, client.problem(case))

    def tensor_worker() -> None:
        with TensorFuzzer(f"{SEED} tensors", server.grpc_url, limits[1]) as fuzzer:
            for _ in range(NUM_TENSOR_REQUESTS):
                kind, what, problem = fuzzer.step()
                report(f"tensors, {kind}", what, problem)

    start = time.monotonic()
    in_parallel([tensor_worker, *(lambda i=i: http_worker(i) for i in range(NUM_CONNECTIONS))])
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(f"\nfuzzed: {sum(counts.values())} requests in {seconds:.0f} s, seed {SEED}: {dict(counts)}")
    assert not problems, f"{len(problems)} of {sum(counts.values())}, seed {SEED}:\n" + "\n".join(
        problems[:20]
    )
    assert (
        min(counts["bad"], counts["compared"], counts["tensors, bad"], counts["tensors, good"])
        > NUM_REQUESTS / 50
    )

    assert server.is_running
    assert metrics(server.metrics_url)["quire:engine_restarts_total"] == 0
    assert greedy_answers(server) == answers
    wait_until(lambda: blocks_are_free(server), what="all blocks are free")


def blocks_are_free(server: TritonServer) -> bool:
    values = metrics(server.metrics_url)
    return values["quire:kv_blocks_free"] == values["quire:kv_blocks_total"]
