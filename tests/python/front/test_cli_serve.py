"""quire serve and quire demo: a server that starts, works, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_command import ROOT, run
from processes import command_line, with_environment
from quire.cli import app
from quire.triton.model_copy import add_model
from quire.triton.run_folder import remove_leftovers
from typer.testing import CliRunner

MARK = "QUIRE_TEST_MARK"


class Serving:
    """A `quire serve` on free ports that is ready, and every process that it starts."""

    def __init__(self, *arguments: str) -> None:
        self._mark = f"{MARK}={uuid.uuid4()}"
        # As from a terminal: what runs in the background of a script inherits that SIGINT is ignored.
        handlers = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # as nohup has it ignored
        )
        program = f"{handlers}; from quire.cli import app; app()"
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *ports, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | dict([self._mark.split("=")]),
        )
        assert self.process.stdout
        self.output = self.process.stdout
        self.text = self.read_until("Ctrl-C stops")

    def read_until(self, part: str) -> str:
        """What it says up to the line with `part`, or all until its end."""
        lines = []
        for line in self.output:
            lines.append(line)
            if part in line:
                break
        return "".join(lines)

    def processes(self, command: str) -> list[int]:
        """The processes it started that are still there and whose command line has `command`."""
        started = set(with_environment(self._mark)) - {self.process.pid}
        return [pid for pid in started if command in command_line(pid)]

    def wait_for_nobody(self) -> None:
        """Returns when no process is left that it started."""
        deadline = time.monotonic() + 60
        while left := self.processes(""):
            assert time.monotonic() < deadline, [command_line(pid) for pid in left]
            time.sleep(0.05)

    def stops_at(self, number: signal.Signals) -> None:
        """It stops in order at this signal, and leaves nobody."""
        self.process.send_signal(number)
        rest = self.output.read()
        assert self.process.wait(60) == 0, rest
        assert "stopped" in rest
        self.wait_for_nobody()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(60)
        self.output.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def start(*arguments: str) -> Serving:
        started.append(Serving(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()


def asks(text: str) -> bytes:
    """The answer to the first curl line of `text`."""
    curl = re.search(r"curl -s (\S+/generate) -d '(.*)'", text)
    assert curl, text
    request = urllib.request.Request(curl[1], curl[2].encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return bytes(answer.read())


@pytest.mark.serving
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_serve(serve: Callable[..., Serving], number: signal.Signals) -> None:
    """serve prints curl lines that work, and stops in order on Ctrl-C and a closed terminal."""
    server = serve()
    assert b"def fibonacci(n):" in asks(server.text)
    server.stops_at(number)


@pytest.mark.serving
def test_nothing_outlives_serve(
    serve: Callable[..., Serving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL of serve ends the server and its engine, even one that is stopped, and the next start removes
    the run's folder and shared memory."""
    # Not the machine's own folder, where other starts remove leftovers, too.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = serve()
    (tritonserver,) = server.processes("bin/tritonserver")
    (engine,) = server.processes("quire.engine")
    environment = Path(f"/proc/{tritonserver}/environ").read_text().split("\0")
    (path,) = [entry.removeprefix("PATH=") for entry in environment if entry.startswith("PATH=")]
    folder = Path(path.partition("/bin")[0])
    assert folder.name.startswith("quire-server-")
    os.kill(engine, signal.SIGSTOP)
    server.process.kill()
    server.process.wait(60)
    server.wait_for_nobody()
    shared_memory = Path("/dev/shm") / f"{folder.name}_test"
    shared_memory.touch()
    assert folder.is_dir()
    remove_leftovers()
    assert not folder.exists()
    assert not shared_memory.exists()


@pytest.mark.serving
def test_a_second_signal_ends_serve_at_once(serve: Callable[..., Serving]) -> None:
    """A stop waits for open connections and says so; a second Ctrl-C does not, and leaves nobody."""
    server = serve("--exit-timeout", "600")
    url = re.search(r"HTTP http://(\S+):(\d+)", server.text)
    assert url
    with socket.create_connection((url[1], int(url[2]))) as idle:
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in idle.recv(1000)
        server.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
    server.wait_for_nobody()


@pytest.mark.serving
def test_serve_notices_a_dead_server(serve: Callable[..., Serving]) -> None:
    """When tritonserver dies, serve says which signal ended it, and ends with status 1 and nobody left."""
    server = serve()
    (tritonserver,) = server.processes("bin/tritonserver")
    os.kill(tritonserver, signal.SIGSEGV)
    rest = server.output.read()
    assert server.process.wait(60) == 1
    assert "tritonserver was killed by SIGSEGV" in rest
    server.wait_for_nobody()


@pytest.mark.serving
def test_restart(serve: Callable[..., Serving]) -> None:
    """With --restart a server that died is started again on its ports, and serve says why and how often."""
    server = serve("--restart")
    (tritonserver,) = server.processes("bin/tritonserver")
    os.kill(tritonserver, signal.SIGKILL)
    said = server.read_until("is ready")
    assert "tritonserver was killed by SIGKILL (as the kernel does where memory is short" in said
    assert "restart 1 of 5 in 1 s" in said
    assert b"def fibonacci(n):" in asks(server.text)
    server.stops_at(signal.SIGINT)


@pytest.mark.serving
def test_serve_a_model(serve: Callable[..., Serving]) -> None:
    """--model serves a folder without editing anything, under --name and with the settings of --set."""
    server = serve("--model", "models/quire-8m", "--name", "coder", "--set", "max_output_tokens=8")
    assert "/v2/models/coder/generate" in server.text
    assert b"def fibonacci(n):" in asks(server.text.replace('"max_tokens": 64', '"max_tokens": 8'))
    with pytest.raises(urllib.error.HTTPError) as error:
        asks(server.text)
    assert b"max_tokens: got 64; allowed: " in error.value.read()
    server.stops_at(signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "coder"], "--name: got it without --model; allowed: with --model"),
        (["--set", "seed=1"], "--set: got it without --model; allowed: with --model"),
        (["--model", "m", "--model-repository", "r"], "--model, --model-repository: got both"),
        (["--model", "quire-8m", "--name", "generation"], '--name: got "generation"; allowed: letters, '),
        (["--model", "quire-8m", "--name", "../x"], '--name: got "../x"; allowed: letters, '),
        (["--model", "quire-8m", "--set", "seed"], '--set: got "seed"; allowed: key=value'),
        (["--model", "quire-8m", "--set", "model=x"], '--set: got "model"; allowed: each setting once'),
        (["--model", "quire-8m", "--set", "sed=1"], 'sed: unknown key (did you mean "seed"?)'),
        (["--model", "quire-8m", "--set", "max_num_seqs=x"], 'max_num_seqs: got "x"; allowed: an integer'),
        (["--model", "./nowhere"], "there is no folder"),
        (["--model", "quire-9m"], "model: got 'quire-9m' (did you mean \"quire-8m\"?)"),
        (["--model", "tests"], "has no config.json; allowed: a model folder"),
    ],
)
def test_serve_refuses_a_bad_model(arguments: list[str], message: str) -> None:
    """What cannot be served is one line that names the option or the setting, and status 1."""
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.serving
def test_a_model_that_nobody_asked_for(serve: Callable[..., Serving], tmp_path: Path) -> None:
    """In explicit model control only what will be loaded is checked, and the examples are of that."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository", repository)
    (repository / "ensemble").rename(repository / "text")
    config = repository / "text" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "ensemble"', 'name: "text"'))
    (repository / "broken").mkdir()
    (repository / "broken" / "config.pbtxt").write_text("nonsense")
    server = serve(
        *("--model-repository", str(repository), "--", "--model-control-mode=explicit"),
        *("--load-model", "text"),
    )
    assert "/v2/models/text/generate" in server.text
    assert "ensemble" not in server.text
    assert b"def fibonacci(n):" in asks(server.text)
    result = CliRunner().invoke(app, ["serve", "--model-repository", str(repository)])
    assert result.exit_code == 1
    assert "broken/config.pbtxt: line 1" in result.output


@pytest.mark.serving
@pytest.mark.parametrize(
    "control", [(), ("--model-control-mode=explicit", "--load-model=one", "--load-model=two")]
)
def test_one_of_two_models_is_broken(
    serve: Callable[..., Serving], tmp_path: Path, control: tuple[str, ...]
) -> None:
    """A start names it and refuses; with --exit-on-error=false it serves the other one."""
    repository = tmp_path / "repository"
    for name in ("one", "two"):
        add_model(ROOT / "model_repository", repository, "quire-8m", name, {"kv_cache_memory_bytes": 1 << 24})
    (repository / "one-generation" / "1" / "model.json").write_text('{"model": "quire-8m", "max_seqs": 1}')
    arguments = ("--repository", str(repository), "--", *control)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert "one-generation/1/model.json: max_seqs: unknown key" in result.output
    server = serve(*arguments, "--exit-on-error=false")
    failed = "^one(, one_trtllm)?: not loaded: a step of it is not loaded$"
    assert re.search(failed, server.text, re.MULTILINE)
    assert re.search(r"^one-generation.*: not loaded: .*max_seqs: unknown key", server.text, re.MULTILINE)
    assert "/v2/models/two/generate" in server.text
    assert b"def fibonacci(n):" in asks(server.text)
    url = re.search(r"HTTP (\S+)", server.text)
    assert url
    listed = run("list", "--repository", str(repository), "--url", url[1]).stdout.splitlines()
    assert listed[1].startswith("one ")
    assert "max_seqs: unknown key" in listed[1]
    assert listed[2].split() == ["two", "quire-8m", "1", "ready"]


@pytest.mark.serving
def test_a_log_file_hides_no_error(tmp_path: Path) -> None:
    """A start that fails says why, where `--log-file` takes the log elsewhere, too."""
    log = tmp_path / "triton.log"
    log.write_text("an older run\n")
    flags = ["--", f"--log-file={log}", "--model-control-mode=explicit", "--load-model=ensemble"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    result = run("serve", *ports, *flags, "--rate-limit-resource=nonsense", timeout=240)
    assert result.returncode == 1
    assert "rate-limit-resource" in result.stdout
    repository = tmp_path / "repository"
    python_model = repository / "broken" / "1" / "model.py"
    python_model.parent.mkdir(parents=True)
    python_model.write_text("raise RuntimeError('cannot do it')")
    (repository / "broken" / "config.pbtxt").write_text('backend: "python" max_batch_size: 0')
    result = run(
        "serve", *ports, "--model-repository", str(repository), "--", f"--log-file={log}", timeout=240
    )
    assert result.returncode == 1
    assert "cannot do it" in result.stdout
    assert "an older run" not in result.stdout


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
