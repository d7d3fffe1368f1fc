"""One tritonserver process: started, awaited, asked, stopped. `with TritonServer(folder) as server: ...`"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

from quire.errors import PortInUse, ServerError, ServerStartError
from quire.triton.installation import backend_directory, find_installation, lay_out

# What tritonserver logs as errors on every machine without a GPU.
_NOISE = re.compile(r"CUDA|NVML|DCGM|pinned memory|GPU", re.IGNORECASE)
# Twice Triton's default: a thread that is busy with a large body delays the streams of its connections.
HTTP_THREADS = 16
_ERROR_LINE = re.compile(r"^(E\d{4} |error:)")
_FAILED_LOAD = re.compile(r"\"failed to load '([^']+)' version \d+: (.*)\"$", re.MULTILINE)


class TritonServer:
    """A tritonserver on its own ports. `models` given: explicit model control, these are loaded at start;
    else every model of the repository. `with_guard`: see docs/guard.md. stop() removes
    the files of the run, log_path included."""

    def __init__(
        self,
        repository: Path | str,
        *,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        host: str = "127.0.0.1",
        models: Sequence[str] | None = None,
        with_quire_backend: bool = True,
        with_guard: bool = True,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_timeout: float = 120.0,
        exit_timeout: int = 5,
    ) -> None:
        self._repository = Path(repository).resolve()
        self._host = host
        self._models = models
        self._with_quire_backend = with_quire_backend
        self._with_guard = with_guard
        self._arguments = list(arguments)
        self._env = dict(env or {})
        self._start_timeout = start_timeout
        self._exit_timeout = exit_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._root: Path | None = None
        self._log = ""
        asked = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        for argument in self._arguments:
            if argument.partition("=")[0] in asked:
                allowed = "flags of tritonserver but its ports, which are options of their own"
                raise ServerError(f"arguments: got {argument}; allowed: {allowed}")
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(asked, host)

    @property
    def http_url(self) -> str:
        return f"http://{self._reachable_host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{self._reachable_host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reachable_host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("tritonserver: not started")
        return self._process.pid

    @property
    def log_path(self) -> Path | None:
        return self._root / "server.log" if self._root else None

    @property
    def log(self) -> str:
        """All that the server has written so far; after stop(), all that it ever wrote."""
        path = self.log_path
        return path.read_text("utf-8", "replace") if path and path.exists() else self._log

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, on_wait: Callable[[], None] = lambda: None) -> TritonServer:
        """Returns when server and models are ready and every port answers; raises ServerStartError with the
        server's error lines. `on_wait` is called several times a second until then."""
        if self._process is not None:
            raise ServerError("tritonserver: already started")
        if not self._repository.is_dir():
            raise ServerStartError(f"--model-repository: got {self._repository}; allowed: a folder")
        installation = find_installation()
        self._root = Path(tempfile.mkdtemp(prefix="quire-server-"))
        try:
            env = lay_out(
                self._root,
                installation,
                with_quire_backend=self._with_quire_backend,
                with_guard=self._with_guard,
            )
            with (self._root / "server.log").open("wb") as log:
                # A session of its own: Ctrl-C reaches us only, and we stop the server in order.
                self._process = subprocess.Popen(
                    [str(installation.executable), *self._command_line()],
                    env=env | self._env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_ready(on_wait)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """SIGTERM, wait, SIGKILL. The server gives open requests and connections `exit_timeout` seconds."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(self._exit_timeout + 25)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        if self._root is not None:
            self._log = self.log
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    def __enter__(self) -> TritonServer:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def load_model(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load, or load again after its files changed. Needs explicit model control. Raises ServerError."""
        body = {"parameters": {"config": json.dumps(config)}} if config is not None else {}
        self._post_or_raise(f"/v2/repository/models/{name}/load", body)

    def unload_model(self, name: str) -> None:
        """Returns when the model is gone."""
        self._post_or_raise(f"/v2/repository/models/{name}/unload", {})
        deadline = time.monotonic() + 30
        while self.get(f"/v2/models/{name}/ready")[0] == 200:
            if time.monotonic() > deadline:
                raise ServerError(f"{name}: not unloaded after 30 s")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/v2/health/ready", timeout=5)[0] == 200
        return False

    def generate(self, model: str, payload: Mapping[str, Any], timeout: float = 60) -> tuple[int, Any]:
        """POST to the model's generate endpoint: status and parsed answer."""
        return self.post(f"/v2/models/{model}/generate", payload, timeout)

    def get(self, path: str, timeout: float = 60) -> tuple[int, str]:
        return _http(urllib.request.Request(self.http_url + path), timeout)

    def post(self, path: str, payload: Any, timeout: float = 60) -> tuple[int, Any]:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        request = urllib.request.Request(self.http_url + path, body, {"Content-Type": "application/json"})
        status, text = _http(request, timeout)
        try:
            return status, json.loads(text) if text else None
        except ValueError:
            return status, text

    def metrics(self) -> str:
        return _http(urllib.request.Request(self.metrics_url), 10)[1]

    def error_lines(self) -> str:
        """What the server says went wrong: why models did not load, else its error lines (without those of
        every machine without a GPU), else the end of its log."""
        log = self.log
        if failed := _FAILED_LOAD.findall(log):
            return "\n".join(f"{name}: {_unescaped(reason)}" for name, reason in failed)
        lines = [line for line in log.splitlines() if _ERROR_LINE.search(line) and not _NOISE.search(line)]
        return "\n".join(dict.fromkeys(lines)) or "\n".join(log.splitlines()[-20:])

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self._host in ("0.0.0.0", "") else self._host

    def _command_line(self) -> list[str]:
        assert self._root
        arguments = {
            "--model-repository": self._repository,
            "--backend-directory": backend_directory(self._root),
            "--http-address": self._host,
            "--http-port": self.http_port,
            "--grpc-address": self._host,
            "--grpc-port": self.grpc_port,
            "--metrics-address": self._host,
            "--metrics-port": self.metrics_port,
            "--http-thread-count": HTTP_THREADS,
            "--exit-timeout-secs": self._exit_timeout,
            "--allow-gpu-metrics": str(Path("/dev/nvidiactl").exists()).lower(),
        }
        line = [f"{name}={value}" for name, value in arguments.items()]
        if self._models is not None:
            line += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self._models)]
        return line + self._arguments

    def _wait_ready(self, on_wait: Callable[[], None]) -> None:
        assert self._process
        deadline = time.monotonic() + self._start_timeout
        # tritonserver opens the port of its metrics last, behind the one that says that it is ready.
        while not (self.is_ready() and self._listens_for_metrics()):
            if (status := self._process.poll()) is not None:
                raise ServerStartError(
                    f"tritonserver: {_ended(status)} before it was ready", self.error_lines()
                )
            if time.monotonic() > deadline:
                problem = f"tritonserver: not ready after {self._start_timeout:g} s"
                raise ServerStartError(problem, self.error_lines())
            on_wait()
            time.sleep(0.05)

    def _listens_for_metrics(self) -> bool:
        """True where metrics are turned off, too."""
        if not _is_on("--allow-metrics", self._arguments):
            return True
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self._reachable_host, self.metrics_port), 5),
        ):
            return True
        return False

    def _post_or_raise(self, path: str, payload: Any) -> None:
        status, answer = self.post(path, payload, timeout=self._start_timeout)
        if status != 200:
            raise ServerError(answer.get("error", str(answer)) if isinstance(answer, dict) else str(answer))


def choose_ports(asked: Mapping[str, int | None], host: str) -> list[int]:
    """A port for each flag: the one asked for, checked, or a free one. Two servers would share a gRPC port
    without a word, so a taken one is an error here."""
    with contextlib.ExitStack() as held:
        ports = []
        for flag, port in asked.items():
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # As tritonserver does: a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port or 0))
                probe.listen(1)  # held until all are chosen, so that no two are the same
            except OSError as error:
                if port is None:
                    raise ServerError(f"{host}: no free port: {error.strerror}") from error
                raise PortInUse(port, flag) from error
            ports.append(probe.getsockname()[1])
        return ports


def _is_on(flag: str, arguments: Sequence[str]) -> bool:
    """What tritonserver makes of a boolean flag that is on by default: `--flag=value` or `--flag value`."""
    value = "true"
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, given = argument.partition("=")
        if name == flag:
            value = given if equals else following
    return value.lower() in ("true", "1", "on")


def _unescaped(reason: str) -> str:
    """A message as it was before the log escaped it, without the Python backend's traceback."""
    with contextlib.suppress(ValueError):
        reason = json.loads(f'"{reason}"')
    return reason.partition("\n\nAt:\n")[0]


def _http(request: urllib.request.Request, timeout: float) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8", "replace")


def _ended(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
