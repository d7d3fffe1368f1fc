"""The command line."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli_command import ROOT, run
from quire.cli import app, bench
from quire.cli.load import Result, percentile, run_load, stream
from quire.errors import ServerError
from quire.outputs import CompletionOutput, RequestOutput
from typer.testing import CliRunner


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


def test_generate_says_what_ended_the_answer_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that ends with an error is shown as far as it came, with the error and status 1."""

    class Failing:
        def __init__(self, model: str) -> None: ...

        def generate(self, prompt: str, _: object) -> list[RequestOutput]:
            failed = CompletionOutput(
                index=0, text=" = 1", token_ids=(5,), finish_reason="error", error="no token can be sampled"
            )
            return [
                RequestOutput(
                    request_id=0, prompt=prompt, prompt_token_ids=(4,), num_cached_tokens=0, outputs=(failed,)
                )
            ]

    monkeypatch.setattr("quire.llm.LLM", Failing)
    result = CliRunner().invoke(app, ["generate", "x"])
    assert 1 == result.exit_code
    assert "x = 1\n" in result.output
    assert "no token can be sampled" in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
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
