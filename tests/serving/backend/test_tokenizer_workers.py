"""Role tokenizer: its processes are replaced whatever ends them, and no request waits for another's."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import ROOT, wait_for
from processes import all_pids, children, is_alive, state_and_parent
from quire.triton.server import TritonServer

CONFIG = """
backend: "quire"
max_batch_size: 0
input [ {{ name: "text_input" data_type: TYPE_STRING dims: [ -1 ] }} ]
output [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
parameters {{ key: "role" value {{ string_value: "tokenizer" }} }}
parameters {{ key: "tokenizer_module" value {{ string_value: "word_worker" }} }}
parameters {{ key: "tokenize_timeout_s" value {{ string_value: "{timeout}" }} }}
"""
LONG = "sleep 600"
NEVER = 500.0  # seconds; what must happen earlier


class Words:
    """A server whose one model's processes are word_worker.py."""

    def __init__(self, folder: Path, count: int = 2, timeout: float = NEVER) -> None:
        self.folder = folder
        (folder / "words" / "1").mkdir(parents=True)
        (folder / "words" / "config.pbtxt").write_text(CONFIG.format(count=count, timeout=timeout))
        path = os.pathsep.join([str(ROOT / "tests" / "serving"), str(ROOT / "python")])
        self.server = TritonServer(folder, env={"PYTHONPATH": path}, models=["words"])

    def __enter__(self) -> Words:
        self.server.start()
        self.client = grpc.InferenceServerClient(self.server.grpc_url)
        self.pool = ThreadPoolExecutor(32)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.workers():  # let requests that still run end
            os.kill(pid, signal.SIGKILL)
        self.client.close()
        self.server.stop()
        self.pool.shutdown()

    def readiness(self) -> set[bool]:
        """What the server says of itself and of its model."""
        paths = ("/v2/health/ready", "/v2/models/words/ready")
        return {self.server.get(path)[0] == 200 for path in paths}

    def inputs(self, text: str) -> list[grpc.InferInput]:
        tensor = grpc.InferInput("text_input", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode()], np.object_))
        return [tensor]

    def ask(self, text: str) -> list[int]:
        return self.client.infer("words", self.inputs(text)).as_numpy("input_ids").tolist()

    def error(self, text: str) -> tuple[str, str]:
        """Status and message of a request that fails."""
        with pytest.raises(grpc.InferenceServerException) as raised:
            self.ask(text)
        return str(raised.value.status()).removeprefix("StatusCode."), str(raised.value.message())

    def assert_all_answer(self) -> None:
        """Many more requests than processes, so that every process has some."""
        assert list(self.pool.map(self.ask, [f"{i} {i + 1}" for i in range(20)])) == [
            [i, i + 1] for i in range(20)
        ]

    def workers(self) -> list[int]:
        return [*children(self.server.pid)] if self.server.is_running else []

    def zombies(self) -> list[int]:
        return [pid for pid in all_pids() if state_and_parent(pid) == ("Z", self.server.pid)]

    def begun(self, text: str) -> list[int]:
        """The processes that began with the text, in this order."""
        path = self.folder / "words.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[0]) for line in lines if line.partition(" ")[2] == text[:20]]

    def restarts(self) -> int:
        return int(
            re.findall(r"^quire:tokenizer_restarts_total\{.*\} (\d+)$", self.server.metrics(), re.M)[0]
        )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Words]]:
    """Starts a server of a test's own."""
    started: list[Words] = []

    def serve(**settings: Any) -> Words:
        started.append(Words(tmp_path, **settings).__enter__())
        return started[-1]

    yield serve
    for words in started:
        words.__exit__()


def test_idle_processes_that_are_killed_are_replaced(serve: Callable[..., Words]) -> None:
    """All are killed, or stopped, at once: every request after that is answered, and no zombie is left."""
    words = serve()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = words.workers()
        assert len(before) == 2
        restarts = words.restarts()
        for pid in before:
            os.kill(pid, number)
        words.assert_all_answer()
        wait_for(lambda before=before: len(words.workers()) == 2 and not {*words.workers()} & {*before}, 120)
        assert words.zombies() == []
        wait_for(lambda restarts=restarts: words.restarts() == restarts + 2, 120)


def test_processes_are_replaced_without_a_request(serve: Callable[..., Words]) -> None:
    """A dead process is noticed at once, not only by the next request."""
    words = serve(count=1)
    [pid] = words.workers()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: words.restarts() == 1, 120)
    assert words.workers() not in ([], [pid])
    assert words.begun("1") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_request_whose_process_dies_is_tried_again(serve: Callable[..., Words], number: int) -> None:
    """Tokenizing changes nothing, so the client does not notice."""
    words = serve()
    answer = words.pool.submit(words.ask, "sleep 2 7")
    wait_for(lambda: words.begun("sleep 2 7"), 120)
    os.kill(words.begun("sleep 2 7")[0], number)
    assert answer.result() == [2, 7]
    assert len({*words.begun("sleep 2 7")}) == 2
    words.assert_all_answer()


@pytest.mark.parametrize(
    ("text", "how"), [("die", "was killed by signal 9"), ("stop", "was stopped by a signal")]
)
def test_a_request_that_kills_processes(serve: Callable[..., Words], text: str, how: str) -> None:
    """It is tried twice and gets an error; requests at the other process go on, and all work after it."""
    words = serve()
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(words.error, text)
        while not bad.done():
            assert words.ask("5") == [5]
        status, message = bad.result()
    assert status == "INTERNAL"
    assert message.startswith(f"tokenizer: the process that had this request {how}")
    assert message.endswith("it is not tried again")
    assert len({*words.begun(text)}) == len(words.begun(text)) == 2
    words.assert_all_answer()


def test_a_request_that_takes_too_long(serve: Callable[..., Words]) -> None:
    """It gets an error after tokenize_timeout_s, and its process is replaced; others go on meanwhile."""
    words = serve(timeout=4)
    late = words.pool.submit(words.error, LONG)
    wait_for(lambda: words.begun(LONG), 120)
    assert words.ask("5") == [5]
    status, message = late.result()
    assert status == "UNAVAILABLE"
    assert message.startswith(
        "tokenizer: the request took longer than 4 s (config.pbtxt: parameters: tokenize_"
    )
    words.assert_all_answer()
    assert words.begun(LONG)[0] not in words.workers()


def test_a_client_that_leaves(serve: Callable[..., Words]) -> None:
    """Its request ends its process soon where that works on it, and is not begun where it waits."""
    words = serve(count=1)
    calls = []
    for text in (LONG, "77"):
        calls.append(
            words.client.async_infer("words", words.inputs(text), callback=lambda result, error: None)
        )
        if text == LONG:
            wait_for(lambda: words.begun(LONG), 120)
    waiting = words.pool.submit(words.ask, "8")
    time.sleep(0.3)  # both are in Triton's queue
    for call in reversed(calls):
        call.cancel()
    assert waiting.result() == [8]
    assert words.begun("77") == []
    assert words.begun(LONG)[0] not in words.workers()


def test_processes_that_do_not_start(serve: Callable[..., Words]) -> None:
    """Requests hear why, nothing says ready meanwhile, and all is well again once they do start."""
    words = serve(count=1)
    assert {True} == words.readiness()
    (words.folder / "broken").touch()
    os.kill(words.workers()[0], signal.SIGKILL)
    wait_for(lambda: words.readiness() == {False}, 120)
    assert words.error("1") == (
        "UNAVAILABLE",
        "the tokenizer does not start: broken: got a file; allowed: none",
    )
    (words.folder / "broken").unlink()
    wait_for(lambda: words.restarts() == 1, 120)
    assert {True} == words.readiness()
    words.assert_all_answer()


def test_errors_of_the_client(serve: Callable[..., Words]) -> None:
    """They keep their code, and the process; a request of more bytes than are allowed never reaches it."""
    words = serve()
    before = {*words.workers()}
    assert words.error("refuse") == ("INVALID_ARGUMENT", "text_input: got refuse; allowed: a number")
    status, message = words.error("9" * (65 << 20))
    assert status == "INVALID_ARGUMENT"
    size = (65 << 20) + 4  # with its length
    assert (
        message
        == f"text_input: got {size} bytes; allowed: at most {64 << 20} bytes in all inputs of a request"
    )
    assert words.begun("9" * 20) == []
    assert before == {*words.workers()}


def test_processes_end_with_a_killed_server(tmp_path: Path) -> None:
    """Idle, busy or stopped: none outlives a tritonserver that gets SIGKILL."""
    with Words(tmp_path, count=3) as words:
        idle, stopped, _ = workers = words.workers()
        busy = words.pool.submit(words.ask, LONG)
        wait_for(lambda: words.begun(LONG), 120)
        os.kill(stopped if stopped != words.begun(LONG)[0] else idle, signal.SIGSTOP)
        os.kill(words.server.pid, signal.SIGKILL)
        wait_for(lambda: not any(is_alive(pid) for pid in workers), 120)
        assert busy.exception() is not None


def test_processes_end_with_their_model(serve: Callable[..., Words]) -> None:
    """An unloaded model leaves none, also where one works for a client that has left."""
    words = serve()
    call = words.client.async_infer("words", words.inputs(LONG), callback=lambda result, error: None)
    wait_for(lambda: words.begun(LONG), 120)
    call.cancel()
    words.server.unload_model("words")
    wait_for(lambda: words.workers() == words.zombies() == [], 120)
