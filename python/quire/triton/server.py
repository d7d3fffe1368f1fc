"""One tritonserver process: started, awaited, asked, stopped. `with TritonServer(folder) as server: ...`"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quire.errors import PortInUse, ServerError, ServerStartError
from quire.triton.installation import Installation, backend_directory, find_installation, lay_out
from quire.triton.run_folder import RunFolder
from quire.triton.server_arguments import is_on, value_of, values_of
from quire.triton.server_log import ServerLog
from quire.triton.tied_process import start_tied

# Twice Triton's default: a thread that is busy with a large body delays the streams of its connections.
HTTP_THREADS = 16
_ESTABLISHED = "01"  # in /proc/net/tcp


class TritonServer:
    """A tritonserver on its own ports. `models` given: explicit model control, these are loaded at start;
    else every model of the repository. `with_guard`: see docs/guard.md. stop() removes the files of the run.
    The server ends with this process, however that ends."""

    def __init__(
        self,
        repository: Path | str,
        *,
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        host: str = "127.0.0.1",
        models: Sequence[str] | None = None,
        with_guard: bool = True,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_timeout: float = 120.0,
        exit_timeout: int = 5,
    ) -> None:
        self._repository = Path(repository).resolve()
        self._host = host
        self._models = models
        self._with_guard = with_guard
        self._arguments = list(arguments)
        self._env = dict(env or {})
        self._start_timeout = start_timeout
        self.exit_timeout = exit_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: RunFolder | None = None
        self._log: ServerLog | None = None
        self._all_log = ""
        asked = {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
        for argument in self._arguments:
            if argument.partition("=")[0] in asked:
                allowed = "flags of tritonserver but its ports, which are options of their own"
                raise ServerError(f"arguments: got {argument}; allowed: {allowed}")
        self.http_port, self.grpc_port, self.metrics_port = choose_ports(asked, host)
        self._reachable_host = "127.0.0.1" if host in ("0.0.0.0", "") else host
        self.http_url = f"http://{self._reachable_host}:{self.http_port}"
        self.grpc_url = f"{self._reachable_host}:{self.grpc_port}"
        self.metrics_url = f"http://{self._reachable_host}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError("tritonserver: not started")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has written so far; after stop(), all that it ever wrote."""
        return self._log.text() if self._log else self._all_log

    def new_log_lines(self) -> list[str]:
        """What the server has written since the last call."""
        return self._log.new_lines() if self._log else []

    @property
    def ending(self) -> str:
        """How a server ended that was not stopped: "was killed by SIGSEGV", and what it said last."""
        status = self._process.poll() if self._process else None
        if status is None or self._log is None:
            raise ServerError("tritonserver: has not ended")
        self._log.new_lines()
        return "\n".join([ended(status), *self._log.last_words()])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, on_wait: Callable[[], None] = lambda: None) -> TritonServer:
        """Returns when server and models are ready and every port answers; with --exit-on-error=false some
        models may have failed. Raises ServerStartError with the server's error lines. `on_wait` is called
        several times a second until then."""
        if self._process is not None:
            raise ServerError("tritonserver: already started")
        if not self._repository.is_dir():
            raise ServerStartError(f"--model-repository: got {self._repository}; allowed: a folder")
        installation = find_installation()
        self._folder = RunFolder()
        try:
            root = self._folder.path
            env = lay_out(root, installation, with_guard=self._with_guard)
            log_file = value_of("--log-file", self._arguments)
            self._log = ServerLog(root / "server.log", Path(log_file) if log_file else None)
            ports = self.http_port, self.grpc_port, self.metrics_port
            with (root / "server.log").open("wb") as log, reserved(ports, self._host):
                # A session of its own: Ctrl-C reaches us only, and we stop the server in order.
                self._process = start_tied(
                    [str(installation.executable), *self._command_line(root, installation)],
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

    def stop(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """SIGTERM, wait, SIGKILL. The server gives open requests and connections `exit_timeout` seconds.
        `on_wait` is called several times a second until it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + self.exit_timeout + 25
            while self._process.poll() is None:
                if time.monotonic() > deadline:
                    self.kill()
                on_wait()
                time.sleep(0.02)
        self._process = None
        if self._folder is not None:
            self._all_log = self.log
            self._log = None
            self._folder.remove()
            self._folder = None

    def kill(self) -> None:
        """Ends the server at once, its engine with it. stop() is still to be called."""
        if self._process is not None:
            self._process.kill()

    def num_connections(self) -> int:
        """How many connections clients hold, idle ones too: a stopping server waits for them."""
        ports = {f"{port:04X}" for port in (self.http_port, self.grpc_port)}
        count = 0
        for table in ("tcp", "tcp6"):
            with contextlib.suppress(OSError):
                for line in Path("/proc/net", table).read_text("ascii").splitlines()[1:]:
                    _, local, _, state, *_ = line.split()
                    count += state == _ESTABLISHED and local.rpartition(":")[2] in ports
        return count

    def __enter__(self) -> TritonServer:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def load_model(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        """Load, or load again after its files changed. Needs explicit model control. Raises ServerError."""
        body = {"parameters": {"config": json.dumps(config)}} if config is not None else {}
        self._post_or_raise(f"/v2/repository/models/{name}/load", body)

    def unload_model(self, name: str, *, with_steps: bool = False) -> None:
        """Returns when the model is gone. `with_steps`: an ensemble's steps go, too."""
        body = {"parameters": {"unload_dependents": with_steps}}
        self._post_or_raise(f"/v2/repository/models/{name}/unload", body)
        deadline = time.monotonic() + 30
        while self.get(f"/v2/models/{name}/ready")[0] == 200:
            if time.monotonic() > deadline:
                raise ServerError(f"{name}: not unloaded after 30 s")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        return self._is_healthy("ready")

    def is_live(self) -> bool:
        """True where some models could not be loaded, too."""
        return self._is_healthy("live")

    def _is_healthy(self, kind: str) -> bool:
        with contextlib.suppress(OSError):
            return self.get(f"/v2/health/{kind}", timeout=5)[0] == 200
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
        """What the server says went wrong."""
        return self._log.error_lines() if self._log else ""

    def _command_line(self, root: Path, installation: Installation) -> list[str]:
        arguments: dict[str, object] = {
            "--model-repository": self._repository,
            "--backend-directory": backend_directory(root),
            "--http-address": self._host,
            "--http-port": self.http_port,
            "--grpc-address": self._host,
            "--grpc-port": self.grpc_port,
            "--metrics-address": self._host,
            "--metrics-port": self.metrics_port,
            "--http-thread-count": HTTP_THREADS,
            "--exit-timeout-secs": self.exit_timeout,
            "--allow-gpu-metrics": str(Path("/dev/nvidiactl").exists()).lower(),
        }
        if installation.caches and not values_of("--cache-directory", self._arguments):
            arguments["--cache-directory"] = installation.caches
        line = [f"{name}={value}" for name, value in arguments.items()]
        if self._folder:
            line.append(f"--backend-config=python,shm-region-prefix-name={self._folder.path.name}")
        if self._models is not None:
            line += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in self._models)]
        return line + self._arguments

    def _wait_ready(self, on_wait: Callable[[], None]) -> None:
        assert self._process
        deadline = time.monotonic() + self._start_timeout
        # tritonserver opens the port of its metrics last, after the one that says that it is ready.
        # Its HTTP port answers when every model is loaded or has failed.
        is_up = self.is_ready if is_on("--exit-on-error", self._arguments) else self.is_live
        while not (is_up() and self._listens_for_metrics()):
            if (status := self._process.poll()) is not None:
                raise ServerStartError(
                    f"tritonserver: {ended(status)} before it was ready", self.error_lines()
                )
            if time.monotonic() > deadline:
                problem = f"tritonserver: not ready after {self._start_timeout:g} s"
                raise ServerStartError(problem, self.error_lines())
            on_wait()
            time.sleep(0.05)

    def _listens_for_metrics(self) -> bool:
        """True where metrics are turned off, too."""
        if not is_on("--allow-metrics", self._arguments):
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


def repository_index(url: str) -> list[dict[str, Any]] | None:
    """What a server says of each version of the models of its repository; None: none answers at `url`."""
    request = urllib.request.Request(f"{url}/v2/repository/index", b"{}")
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        status, text = _http(request, timeout=10)
        if status == 200:
            return list(json.loads(text))
    return None


def choose_ports(asked: Mapping[str, int | None], host: str) -> list[int]:
    """A port for each flag: the one asked for, checked, or a free one. Two servers would share a gRPC port
    without a word, so a taken one is an error here."""
    with contextlib.ExitStack() as held:
        ports = []
        for flag, port in asked.items():
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # Like tritonserver: a port whose last connections are still closing counts as free.
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


@contextlib.contextmanager
def reserved(ports: Iterable[int], host: str) -> Iterator[None]:
    """Keeps the kernel from giving these ports to anybody who asks for a free one. tritonserver may bind them
    nevertheless: with SO_REUSEADDR on both sides only a socket that listens is in the way."""
    with contextlib.ExitStack() as held:
        for port in ports:
            holder = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # tritonserver says what is wrong with it
                holder.bind((host, port))
        yield


def _http(request: urllib.request.Request, timeout: float) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8", "replace")


def ended(status: int) -> str:
    """A status of subprocess in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (as the kernel does where memory is short: see dmesg)" if status == -signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
