"""The command line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from processes import children, with_environment
from quire.cli import app, bench
from quire.cli.load import Result, percentile, run_load, stream
from quire.errors import ServerError
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[3]
# As in pyproject.toml: what it says on Python 3.12 and later.
PROTOBUF_4 = "ignore:Type google._upb._message:DeprecationWarning"


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    program = "from quire.cli import app; app()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", PROTOBUF_4, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )


def test_entry_point() -> None:
    """`quire` is the app."""
    assert '[project.scripts]\nquire = "quire.cli:app"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("command", ["serve", "generate", "check", "check-stream", "demo", "bench"])
def test_help(command: str) -> None:
    """Every command explains itself."""
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_light() -> None:
    """The command line answers without loading torch."""
    program = "import sys; from quire.cli import app; print('torch' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--temperature", "3"], "temperature: got 3.0; allowed: a number in [0, 2]\n"),
        (["é\udcff"], "PROMPT: got invalid UTF-8 at byte 2; allowed: UTF-8 text\n"),
        (["x", "--stop", "\udcff"], "--stop: got invalid UTF-8 at byte 0; allowed: UTF-8 text\n"),
        (["x", "--model", "./nowhere"], "model: got './nowhere', but there is no folder "),
    ],
)
def test_generate_refuses(arguments: list[str], message: str) -> None:
    """A mistake is one line and status 1, not a traceback."""
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_generate() -> None:
    """The embedded model continues the prompt."""
    result = run("generate", "def fibonacci(n):", "--max-tokens", "8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def fibonacci(n):\n")
    assert len(result.stdout) > len("def fibonacci(n):\n") + 5


def test_serve_refuses_a_bad_repository(tmp_path: Path) -> None:
    """serve checks before it starts."""
    result = CliRunner().invoke(app, ["serve", "--model-repository", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no such folder" in result.output


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench lists the scripts, runs one with its arguments, or all, and returns the worst status."""
    output = tmp_path / "output"
    for name, status in (("engine", 0), ("scheduler", 7)):
        program = f"import sys; open({str(output)!r}, 'a').write(str(sys.argv[1:])); sys.exit({status})"
        (tmp_path / f"bench_{name}.py").write_text(f'"""Measures the {name}."""\n{program}')
    find = bench.benchmarks
    monkeypatch.setattr(bench, "benchmarks", lambda: find(tmp_path))
    result = CliRunner().invoke(app, ["bench"])
    assert (
        result.exit_code,
        result.output,
    ) == (0, "engine       Measures the engine.\nscheduler    Measures the scheduler.\n")
    assert CliRunner().invoke(app, ["bench", "scheduler", "--requests", "3"]).exit_code == 7
    assert output.read_text() == "['--requests', '3']"
    assert CliRunner().invoke(app, ["bench", "all"]).exit_code == 7
    assert output.read_text() == "['--requests', '3'][][]"
    result = CliRunner().invoke(app, ["bench", "schedule"])
    assert (
        result.exit_code,
        result.output,
    ) == (1, 'bench: got "schedule" (did you mean "scheduler"?); allowed: engine, scheduler, all\n')
    monkeypatch.setattr(bench, "benchmarks", lambda: find(tmp_path / "none"))
    result = CliRunner().invoke(app, ["bench"])
    assert (
        result.exit_code,
        result.output,
    ) == (1, "bench: no folder benchmarks here; allowed: a source checkout\n")


class FakeGenerateStream(BaseHTTPRequestHandler):
    """Three events, the second of them late; a prompt "refuse" is refused, "break" breaks."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(400 if b"refuse" in body else 200)
        self.end_headers()
        if b"refuse" in body:
            self.wfile.write(b'{"error": "no"}')
            return
        for text, tokens, reason in (("a", 1, ""), ("é\\n", 3, ""), ("", 0, "length")):
            if tokens == 3:
                time.sleep(0.05)
                if b"break" in body:
                    self.wfile.write(b'data: {"error": "broke"}\n\n')
                    return
            counts = f'"num_output_tokens": {tokens}, "finish_reason": "{reason}"'
            self.wfile.write(f'data: {{"text_output": "{text}", {counts}}}\n\n'.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeGenerateStream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_stream(fake_port: int) -> None:
    """Events are parsed; refusals, before and within the stream, are errors."""
    events = list(stream("127.0.0.1", fake_port, {"text_input": "x"}))
    assert [(event.text, event.num_tokens, event.finish_reason) for event in events] == [
        ("a", 1, ""),
        ("é\n", 3, ""),
        ("", 0, "length"),
    ]
    with pytest.raises(ServerError, match=r'status 400: \{"error": "no"\}'):
        list(stream("127.0.0.1", fake_port, {"text_input": "refuse"}))
    with pytest.raises(ServerError, match="broke"):
        list(stream("127.0.0.1", fake_port, {"text_input": "break"}))


def test_load(fake_port: int) -> None:
    """A load returns every request's text, counts, times, or error."""
    payloads = [{"text_input": "refuse" if index == 3 else "x"} for index in range(8)]
    results, seconds = run_load("127.0.0.1", fake_port, payloads)
    assert [index for index, result in enumerate(results) if result.error] == [3]
    for result in results[:3]:
        assert (result.text, result.num_tokens) == ("aé\n", 4)
        assert 0 < result.time_to_first_token < seconds
        assert len(result.gaps) == 2
        assert result.gaps[0] >= 0.04
    assert Result().num_tokens == 0


def test_percentiles() -> None:
    """The value that the given share does not exceed."""
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([], 0.5) == 0.0


@contextlib.contextmanager
def serving() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `quire serve` on free ports, and what it printed until it was ready."""
    # As from a terminal: what runs in the background of a script inherits that SIGINT is ignored.
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{handler}; from quire.cli import app; app()"
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", *ports], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        yield process, "".join(lines)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


@pytest.mark.serving
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve(number: signal.Signals) -> None:
    """serve prints curl lines that work, and stops in order on Ctrl-C and SIGTERM."""
    with serving() as (process, text):
        curl = re.search(r"curl -s (\S+/generate) -d '(.*)'", text)
        assert curl, text
        with urllib.request.urlopen(urllib.request.Request(curl[1], curl[2].encode()), timeout=60) as answer:
            assert b"def fibonacci(n):" in answer.read()
        process.send_signal(number)
        assert process.stdout
        rest = process.stdout.read()
        assert process.wait(60) == 0, rest
        assert "stopped" in rest
    url = re.search(r"HTTP (http://\S+)", text)
    assert url
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url[1] + "/v2/health/live", timeout=5)


@pytest.mark.serving
def test_serve_notices_a_dead_server() -> None:
    """When tritonserver dies, serve says so and ends with status 1."""
    with serving() as (process, _):
        (server,) = [pid for pid, command in children(process.pid).items() if "tritonserver" in command]
        os.kill(server, signal.SIGKILL)
        assert process.stdout
        rest = process.stdout.read()
        assert process.wait(60) == 1
        assert "tritonserver ended by itself" in rest


@pytest.mark.serving
def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo asks, streams, puts a load on the server, prints figures, leaves nothing behind, status 0."""
    mark = f"QUIRE_TEST_MARK={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    result = run("demo", "--requests", "4", "--max-tokens", "8", timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "def fibonacci(n):" in result.stdout
    assert "finish_reason: length" in result.stdout
    assert "tokens/s" in result.stdout
    assert result.stdout.endswith("stopped cleanly\n")
    assert with_environment(mark) == []
