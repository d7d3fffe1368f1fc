"""The engine process dies: open requests get a clear error, the server lives, the next request works."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client import HttpError, generate, metrics, wait_until
from processes import children, is_alive
from quire.triton.server import TritonServer


@pytest.fixture(scope="module")
def mortal(make_repository: Callable[..., Path]) -> Iterator[TritonServer]:
    with TritonServer(make_repository()) as running:
        yield running


def engine_pid(server: TritonServer) -> int:
    """The child of the server that runs quire.engine."""
    (pid,) = [pid for pid, command in children(server.pid).items() if "quire.engine" in command]
    return pid


def test_open_requests_get_an_error_and_the_next_one_works(mortal: TritonServer) -> None:
    """Of every ensemble. Killed twice, so that the restarted engine is known to be watched too."""
    for _ in range(2):
        body = {"text_input": "import os", "max_tokens": 1900, "ignore_eos": True}
        with ThreadPoolExecutor(4) as pool:
            models = ("ensemble", "ensemble_unary", "ensemble_trtllm", "ensemble_trtllm_unary")
            open_requests = [pool.submit(generate, mortal.http_url, body, model) for model in models]
            wait_until(
                lambda: metrics(mortal.metrics_url)["vllm:num_requests_running"] == 4, what="4 requests run"
            )
            os.kill(engine_pid(mortal), signal.SIGKILL)
            for request in open_requests:
                with pytest.raises(HttpError) as error:
                    request.result(60)
                assert "engine" in error.value.message
                assert "SIGKILL" in error.value.message or "signal 9" in error.value.message
        answer = generate(mortal.http_url, {"text_input": "import os", "max_tokens": 4})
        assert answer["text_output"].startswith("import os")
    assert metrics(mortal.metrics_url)["quire:engine_restarts_total"] == 2
    assert mortal.is_ready()


def test_the_engine_ends_with_the_server(make_repository: Callable[..., Path]) -> None:
    """No orphan stays behind, neither after a stop nor after the server is killed."""
    with TritonServer(make_repository(num_gpu_blocks_override=256)) as running:
        pid = engine_pid(running)
        os.kill(running.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), what="the engine ends after its server was killed")
    with TritonServer(make_repository(num_gpu_blocks_override=256)) as running:
        pid = engine_pid(running)
    wait_until(lambda: not is_alive(pid), what="the engine ends with its server")
