"""A real tritonserver as a process: started, asked, failed, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from quire.errors import PortInUse, ServerError, ServerStartError
from quire.triton.installation import find_installation
from quire.triton.server import TritonServer, choose_ports, reserved

MakeRepository = Callable[[Path, Path], Path]
FLAGS = ("--http-port", "--grpc-port", "--metrics-port")


def test_ports_are_free_and_different() -> None:
    """Ports that were not asked for are chosen among the free ones, all different."""
    for _ in range(20):
        ports = choose_ports(dict.fromkeys(FLAGS), "127.0.0.1")
        assert len(set(ports)) == 3
        assert all(ports)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_taken_port_is_an_error(reuse_port: bool) -> None:
    """A port that somebody listens on is refused by flag and number, even if the listener would share it."""
    with socket.socket() as taken:
        if reuse_port:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(
                PortInUse, match=f"^--grpc-port: got {port}, which is in use; allowed: a free port$"
            ):
                choose_ports({"--http-port": None, "--grpc-port": port}, host)
    assert choose_ports({"--grpc-port": port}, "127.0.0.1") == [port]


def test_one_port_for_two_is_an_error() -> None:
    """Two endpoints cannot have the same port."""
    (port,) = choose_ports({"--http-port": None}, "127.0.0.1")
    with pytest.raises(PortInUse, match=r"^--grpc-port: "):
        choose_ports({"--http-port": port, "--grpc-port": port}, "127.0.0.1")


def test_a_reserved_port_is_tritonserver_s() -> None:
    """A server that sets SO_REUSEADDR, as tritonserver does, gets it; for others it is taken."""
    (port,) = choose_ports({"--http-port": None}, "127.0.0.1")
    with reserved([port], "127.0.0.1"):
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()


def test_missing_repository(tmp_path: Path) -> None:
    """A repository that is no folder is named before anything starts."""
    with pytest.raises(ServerStartError, match=r"^--model-repository: got .*/nothing; allowed: a folder$"):
        TritonServer(tmp_path / "nothing").start()


@pytest.mark.serving
def test_a_run(tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository) -> None:
    """Start, load, unload, stop: and nothing is left behind."""
    repository = make_repository(tmp_path, byte_level_model)
    waits = []
    server = TritonServer(repository, models=[])
    server.start(on_wait=lambda: waits.append(1))
    try:
        with pytest.raises(ServerError, match="already started"):
            server.start()
        assert waits
        assert server.is_ready()
        assert server.get("/v2/models/tokenizer/ready")[0] == 400
        server.load_model("tokenizer")
        assert server.generate("tokenizer", {"text_input": "a"})[0] == 200
        assert "nv_inference_request_success" in server.metrics()
        server.unload_model("tokenizer")
        assert server.get("/v2/models/tokenizer/ready")[0] == 400
        with pytest.raises(ServerError, match="nothing"):
            server.load_model("nothing")

        # The settings changed: the next load sees them, and says what is wrong with them.
        settings = repository / "generation" / "1" / "model.json"
        settings.write_text(json.dumps({"model": str(byte_level_model), "max_model_len": -1}))
        with pytest.raises(ServerError, match=r"max_model_len: got -1; allowed: an integer in \[1, "):
            server.load_model("tokenizer")
        pid, folder = server.pid, server._folder.path
        assert folder.exists()
    finally:
        server.stop()
    assert not folder.exists()
    assert not server.is_running
    assert "Started HTTPService" in server.log
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.stop()  # twice is fine


# Says that it is ready at once, and opens the port of its metrics a while later, as a busy machine makes
# tritonserver do.
LATE_METRICS = """#!{python}
import http.server, sys, threading, time

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

ports = dict(argument.split("=", 1) for argument in sys.argv[1:])
ready = http.server.ThreadingHTTPServer(("127.0.0.1", int(ports["--http-port"])), Ready)
threading.Thread(target=ready.serve_forever, daemon=True).start()
if ports.get("--allow-metrics") == "false":
    time.sleep(3600)
time.sleep({delay})
http.server.HTTPServer(("127.0.0.1", int(ports["--metrics-port"])), Ready).serve_forever()
"""


@pytest.fixture
def late_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Puts it in tritonserver's place, with seconds until its metrics."""

    def install(delay: float) -> None:
        executable = tmp_path / "tritonserver"
        executable.write_text(LATE_METRICS.format(python=sys.executable, delay=delay))
        executable.chmod(0o755)
        installation = replace(find_installation(), executable=executable)
        monkeypatch.setattr("quire.triton.server.find_installation", lambda: installation)

    return install


def test_a_started_server_has_metrics(tmp_path: Path, late_metrics: Callable[[float], None]) -> None:
    """start() waits for the port of the metrics, which opens behind the one that says ready."""
    late_metrics(1.0)
    with TritonServer(tmp_path) as server:
        assert server.is_ready()
        server.metrics()


def test_metrics_that_never_come(tmp_path: Path, late_metrics: Callable[[float], None]) -> None:
    """A server without them is not ready, unless they were turned off."""
    late_metrics(3600)
    with pytest.raises(ServerStartError, match=r"^tritonserver: not ready after 1 s"):
        TritonServer(tmp_path, start_timeout=1).start()
    with TritonServer(tmp_path, arguments=["--allow-metrics=false"]) as server:
        assert server.is_ready()


@pytest.mark.parametrize("argument", ["--metrics-port=1", "--http-port"])
def test_ports_are_not_set_behind_our_back(tmp_path: Path, argument: str) -> None:
    """A port among the arguments passed on would be another than the one that we wait for."""
    with pytest.raises(ServerError, match=rf"^arguments: got {argument}; allowed: flags of tritonserver but"):
        TritonServer(tmp_path, arguments=[argument])


@pytest.mark.serving
def test_failing_to_start(tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository) -> None:
    """A server that ends while loading is an error with its own lines, without those about missing GPUs."""
    repository = make_repository(tmp_path, byte_level_model)
    (repository / "tokenizer" / "config.pbtxt").write_text('backend: "pythn"\nmax_batch_size: 0\n')
    server = TritonServer(repository, models=["tokenizer"])
    with pytest.raises(ServerStartError) as caught:
        server.start()
    assert str(caught.value).startswith("tritonserver: ended with status 1 before it was ready\n")
    assert "pythn" in caught.value.log
    assert "CUDA" not in caught.value.log
    assert not server.is_running


@pytest.mark.serving
def test_a_response_cache(tmp_path: Path) -> None:
    """`--cache-config` finds the cache of the installation, wherever that is."""
    arguments = ["--cache-config=local,size=1048576"]
    with TritonServer(tmp_path, models=[], arguments=arguments) as server:
        assert server.is_ready()


@pytest.mark.serving
def test_a_killed_server_is_noticed(
    tmp_path: Path, byte_level_model: Path, make_repository: MakeRepository
) -> None:
    """A server that dies is seen to be gone, and its folder goes with stop()."""
    with TritonServer(make_repository(tmp_path, byte_level_model), models=[]) as server:
        os.kill(server.pid, signal.SIGKILL)
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        assert not server.is_running
        assert not server.is_ready()
