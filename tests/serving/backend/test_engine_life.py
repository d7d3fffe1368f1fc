"""The server survives its engine: clear errors, a new engine, and no request without an answer."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from backend_server import Repository, Server, StartServer, wait_for
from fake_engine import CRASH_ID, EXIT_ID, GARBAGE_ID, STALL_ID
from processes import is_alive
from test_answers import grpc_stream

RETRY_PAUSE_SECONDS = 5  # between starts of an engine that does not come back


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models")


def engine_pid(repository: Repository) -> int:
    return int(repository.events("start")[-1]["pid"])


def works(server: Server) -> bool:
    answer = server.generate("ensemble", input_ids=[1, 2], max_tokens=3)
    return answer["text_output"] == "t1 t2 t1"


@pytest.mark.parametrize(
    ("trigger", "cause"),
    [
        (CRASH_ID, "the engine was killed by signal 9 (Killed)"),
        (EXIT_ID, "the engine exited with code 7"),
        (GARBAGE_ID, "not a Quire frame"),
    ],
)
def test_engine_death(start_server: StartServer, repository: Repository, trigger: int, cause: str) -> None:
    """Open requests get an error with the cause; the next request is served by a new engine."""
    server = start_server(repository).wait_ready()
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.generate_error, "ensemble", input_ids=[1, STALL_ID]) for _ in range(4)]
        wait_for(lambda: len(repository.events("add", prompt=[1, STALL_ID])) == 4)
        streamed = pool.submit(
            server.generate_stream,
            "ensemble",
            input_ids=[1, 2, trigger],
            max_tokens=100,
            stream=True,
        )
        for other in others:
            assert cause in other.result()[1]
        *texts, error_event = streamed.result()
    assert [event["text_output"] for event in texts] == ["t1", " t2"]
    assert cause in error_event["error"]
    assert works(server)
    assert len(repository.events("start")) == 2
    assert server.metrics()["quire:engine_restarts_total"] == 1
    assert server.metrics()["vllm:num_requests_running"] == 0
    server.stop()
    assert server.process.returncode == 0, "no request is left open"


def test_requests_wait_for_the_new_engine(
    start_server: StartServer, repository: Repository, tmp_path: Path
) -> None:
    """What arrives while the engine starts again is answered when it is there."""
    server = start_server(repository).wait_ready()
    may_start = tmp_path / "may_start"
    repository.set_engine(start_file=str(may_start))
    os.kill(engine_pid(repository), signal.SIGKILL)
    wait_for(lambda: len(repository.events("begin")) == 2)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(works, server) for _ in range(8)]
        time.sleep(0.2)
        assert not any(answer.done() for answer in answers)
        may_start.touch()
        assert all(answer.result() for answer in answers)


def test_an_engine_that_does_not_come_back(start_server: StartServer, repository: Repository) -> None:
    """After three failed starts requests are refused with the engine's message, until a start succeeds."""
    server = start_server(repository).wait_ready()
    repository.set_engine(start_error="no room for 7 blocks")
    os.kill(engine_pid(repository), signal.SIGKILL)
    wait_for(lambda: not is_alive(engine_pid(repository)))
    _, error = server.generate_error("generation", input_ids=[1])
    assert error == "the engine does not start: no room for 7 blocks"
    num_starts, began = len(repository.events("begin")), time.monotonic()
    for _ in range(20):
        server.generate_error("generation", input_ids=[1])
    num_more = len(repository.events("begin")) - num_starts
    pauses = (time.monotonic() - began) / RETRY_PAUSE_SECONDS  # after the count: a start may come between
    assert num_more <= pauses + 1, "refused without a start for each"
    repository.set_engine()
    wait_for(lambda: server.request("POST", "/v2/models/generation/generate", {"input_ids": [1]})[0] == 200)
    assert works(server)


def test_what_the_load_has_read_holds_for_a_new_engine(
    start_server: StartServer, repository: Repository
) -> None:
    """A new engine gets the settings as they were at the load, and what the first engine said of its model's
    folder; the next load reads them again."""
    repository.set_engine(loaded='{"folder": "/models/first"}')
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=ensemble").wait_ready()
    path = repository.path / "generation" / "1" / "model.json"
    settings = path.read_text()
    repository.set_engine(loaded='{"folder": "/models/second"}', max_model_len=7)
    os.kill(engine_pid(repository), signal.SIGKILL)
    wait_for(lambda: len(repository.events("start")) == 2)
    assert works(server)
    first, second = repository.events("start")
    assert (settings, "") == (first["settings"], first["loaded"])
    assert (settings, '{"folder": "/models/first"}') == (second["settings"], second["loaded"])
    assert server.request("POST", "/v2/repository/models/generation/load")[0] == 200
    assert works(server)
    third = repository.events("start")[-1]
    assert (path.read_text(), "") == (third["settings"], third["loaded"])


def test_a_model_json_that_cannot_be_settings(start_server: StartServer, repository: Repository) -> None:
    """A load is refused at once by the file's name where it is missing, no regular file, or too large."""
    path = repository.path / "generation" / "1" / "model.json"
    server = start_server(repository, "--model-control-mode=explicit").wait_ready()

    def load_error() -> str:
        status, text = server.request("POST", "/v2/repository/models/generation/load")
        assert status == 400
        return text + server.request("POST", "/v2/repository/index")[1]

    path.unlink()
    assert f"{path}: no such file; allowed: a JSON file with engine settings" in load_error()
    os.mkfifo(path)
    assert f"{path}: got no regular file" in load_error()
    path.unlink()
    path.write_text(" " * (2 << 20))
    assert f"{path}: got 2097152 bytes; allowed: at most 1048576" in load_error()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"start_error": "model: got 'nix'; allowed: a folder"}, "model: got 'nix'; allowed: a folder"),
        ({"start_exit_code": 3}, "the engine exited with code 3 before it was ready"),
    ],
)
def test_load_error(
    start_server: StartServer, repository: Repository, engine: dict[str, object], message: str
) -> None:
    """A load fails with the message of the engine that did not start, and works once that is mended."""
    repository.set_engine(**engine)
    server = start_server(repository, "--model-control-mode=explicit").wait_ready()
    status, text = server.request("POST", "/v2/repository/models/generation/load")
    assert status == 400
    _, index = server.request("POST", "/v2/repository/index")
    assert message.replace("'", "") in (text + index).replace("'", "").replace("\\u0027", "")
    repository.set_engine()
    for model in ("generation", "detokenizer", "ensemble"):
        assert server.request("POST", f"/v2/repository/models/{model}/load")[0] == 200
    assert works(server)


def test_unload_and_reload(start_server: StartServer, repository: Repository) -> None:
    """Open requests are answered before an unload; the engine ends with it; a reload starts another."""
    repository.set_engine(step_seconds=0.02)
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=ensemble").wait_ready()
    with ThreadPoolExecutor(4) as pool:
        open_request = pool.submit(server.generate, "ensemble", input_ids=[1, 2], max_tokens=50)
        wait_for(lambda: repository.events("add", prompt=[1, 2]))
        path = "/v2/repository/models/ensemble/unload"
        body = {"parameters": {"unload_dependents": True}}
        assert server.request("POST", path, body)[0] == 200
        assert open_request.result()["text_output"].count("t") == 50
    wait_for(lambda: repository.events("end"))
    wait_for(lambda: not is_alive(engine_pid(repository)))
    assert server.request("POST", "/v2/repository/models/ensemble/load")[0] == 200
    assert works(server)


def test_reload_while_requests_run(start_server: StartServer, repository: Repository) -> None:
    """A model that is loaded again while it works finishes its requests on the old engine."""
    repository.set_engine(step_seconds=0.02)
    server = start_server(repository, "--model-control-mode=explicit", "--load-model=ensemble").wait_ready()
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(server.generate_stream, "ensemble", input_ids=[1], max_tokens=100, stream=True)
        wait_for(lambda: repository.events("add", prompt=[1]))
        first = engine_pid(repository)
        repository.set_engine(step_seconds=0.01)
        assert server.request("POST", "/v2/repository/models/generation/load")[0] == 200
        assert works(server)
        assert "".join(e["text_output"] for e in running.result()) == " ".join(["t1"] * 100)
    assert engine_pid(repository) != first
    wait_for(lambda: not is_alive(first))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_engine_ends_with_the_server(
    start_server: StartServer, repository: Repository, number: signal.Signals
) -> None:
    """However the server ends, its engine does not stay behind."""
    server = start_server(repository).wait_ready()
    pid = engine_pid(repository)
    server.process.send_signal(number)
    server.process.wait(120)
    wait_for(lambda: not is_alive(pid))


def test_engine_inherits_nothing_else(server: Server) -> None:
    """No file or socket of the server is open in the engine."""
    (started,) = server.repository.events("start")
    # 0, 1, 2, the socket, and the folder that the fake engine lists, in the place of the settings, which it
    # has read and closed
    assert started["fds"] == [0, 1, 2, 3, 4]


def test_server_stops_while_requests_are_open(start_server: StartServer, repository: Repository) -> None:
    """Requests that do not end do not keep the server or the engine from ending; their clients hear of it
    shortly before the server's patience is over."""
    server = start_server(repository, "--exit-timeout-secs", "6").wait_ready()
    pid = engine_pid(repository)
    with ThreadPoolExecutor(4) as pool:
        bodies = [{"input_ids": [1, STALL_ID], "stream": stream} for stream in (True, False)]
        answers = [
            pool.submit(server.request, "POST", "/v2/models/ensemble/generate_stream", body)
            for body in bodies
        ]
        wait_for(lambda: len(repository.events("add", prompt=[1, STALL_ID])) == 2)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(120)
        for answer in answers:
            *_, last = [event for event in answer.result()[1].split("\n\n") if event]
            assert "the server ends" in last
    # 1: tritonserver's patience is over where a client keeps its connection.
    assert server.process.returncode in (0, 1), server.log()
    wait_for(lambda: not is_alive(pid))


def test_grpc_streams_hear_that_the_server_ends(start_server: StartServer, repository: Repository) -> None:
    """An open stream gets an error, and the server ends by itself once it has."""
    server = start_server(repository, "--exit-timeout-secs=6").wait_ready()
    with ThreadPoolExecutor(1) as pool:
        fields = {"input_ids": [1, STALL_ID], "stream": True}
        answer = pool.submit(grpc_stream, server, "ensemble", ["text_output"], **fields)
        wait_for(lambda: repository.events("add", prompt=[1, STALL_ID]))
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.InferenceServerException, match="the server ends"):
            answer.result()
    server.process.wait(30)
    assert server.process.returncode in (0, 1), server.log()
