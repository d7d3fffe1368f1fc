"""A real tritonserver with generation, detokenizer and a two-step ensemble over the fake engine."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _core_parts
import numpy as np
import quire
import tritonclient.grpc as grpc
from metrics_page import Page
from quire.triton.installation import find_backend_library, find_guard_library
from quire.triton.server import choose_ports, reserved

ROOT = Path(__file__).resolve().parents[3]
# Where the engine of these tests is found, and its wire.
FAKE_ENGINE_PATH = os.pathsep.join(
    map(str, (ROOT / "tests" / "serving", ROOT / "tests" / "common", Path(_core_parts.__file__).parent))
)
TENSORS = {
    "input_ids": "INT32",
    "request": "UINT8",
    "prompt_lengths": "INT32",
    "chunk": "UINT8",
    "output_ids": "INT32",
}
# What a tokenizer says of a request, in the tensor `request`.
OF_A_TOKENIZER = {"acknowledge", "prompt_text", "vocabulary"}
OUTPUTS = {
    "text_output": "TYPE_STRING",
    "finish_reason": "TYPE_STRING",
    "num_input_tokens": "TYPE_UINT32",
    "num_output_tokens": "TYPE_UINT32",
    "index": "TYPE_UINT32",
    "receipt": "TYPE_STRING",
}


def tritonserver_home() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None, "nvidia-pytriton brings the tritonserver that these tests run"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tritonserver"


def ensemble_config() -> str:
    """generation -> detokenizer, with the tokenizer's part left to the client."""

    def mapping(kind: str, names: Iterable[str]) -> str:
        return " ".join(f'{kind} {{ key: "{name}" value: "{name}" }}' for name in names)

    outputs = [
        f'{{ name: "{name}" data_type: {data_type} dims: [ {1 if name == "num_input_tokens" else -1} ] }}'
        for name, data_type in OUTPUTS.items()
    ]
    return f"""
name: "ensemble"
platform: "ensemble"
max_batch_size: 0
input [ {{ name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }},
        {{ name: "request" data_type: TYPE_UINT8 dims: [ -1 ] optional: true }} ]
output [ {", ".join(outputs)} ]
ensemble_scheduling {{ step [
  {{ model_name: "generation" model_version: -1 {mapping("input_map", ["input_ids", "request"])}
     {mapping("output_map", ["chunk"])} }},
  {{ model_name: "detokenizer" model_version: -1 {mapping("input_map", ["chunk"])}
     {mapping("output_map", OUTPUTS)} }}
] }}
"""


def split(model: str, fields: dict[str, Any]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """The tensors and the request parameters of a request with these fields."""
    tensors = {name: fields[name] for name in fields if name in TENSORS}
    rest = {name: value for name, value in fields.items() if name not in TENSORS}
    if OF_A_TOKENIZER & rest.keys():
        encoded = quire.encode_request(**{"acknowledge": model == "ensemble", **rest})
        return tensors | {"request": list(encoded)}, {}
    return tensors, {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in rest.items()}


def grpc_inputs(tensors: Mapping[str, Sequence[int]]) -> list[grpc.InferInput]:
    inputs = []
    for name, values in tensors.items():
        dtype = TENSORS[name].lower()
        array = np.frombuffer(values, dtype) if isinstance(values, bytes) else np.asarray(values, dtype)
        inputs.append(grpc.InferInput(name, [array.size], TENSORS[name]).set_data_from_numpy(array))
    return inputs


class Repository:
    """A copy of the project's model repository that runs the fake engine."""

    def __init__(self, path: Path, **engine: Any) -> None:
        self.path = path
        self.log_path = path.parent / "engine.jsonl"
        for model in ("generation", "detokenizer"):
            shutil.copytree(ROOT / "model_repository" / model, path / model)
        (path / "ensemble" / "1").mkdir(parents=True)
        (path / "ensemble" / "config.pbtxt").write_text(ensemble_config())
        self.config_path("generation").write_text(
            self.config_path("generation").read_text()
            + f'parameters {{ key: "python" value {{ string_value: "{sys.executable}" }} }}\n'
            + 'parameters { key: "engine_module" value { string_value: "fake_engine" } }\n'
        )
        self.set_engine(**engine)

    def config_path(self, model: str) -> Path:
        return self.path / model / "config.pbtxt"

    def edit(self, model: str, old: str, new: str) -> None:
        text = self.config_path(model).read_text()
        assert old in text
        self.config_path(model).write_text(text.replace(old, new))

    def set_engine(self, **settings: Any) -> None:
        """The fake engine's config; read when an engine starts."""
        settings.setdefault("log", str(self.log_path))
        (self.path / "generation" / "1" / "model.json").write_text(json.dumps(settings))

    def events(self, kind: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What the fake engine logged; of a line that is being written nothing."""
        text = self.log_path.read_text() if self.log_path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        events = [json.loads(line) for line in lines]
        return [
            event
            for event in events
            if kind in (None, event["event"]) and all(event.get(k) == v for k, v in fields.items())
        ]


class Server:
    def __init__(
        self, repository: Repository, work: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        """With the guard, as `quire serve` starts it: else Triton loses events of streams under load."""
        self.repository = repository
        home = tritonserver_home()
        backends = work / "backends"
        (backends / "quire").mkdir(parents=True)
        library = find_backend_library()
        (backends / "quire" / library.name).symlink_to(library)
        ports = choose_ports(dict.fromkeys(("http", "grpc", "metrics")), "127.0.0.1")
        self.http_port, self.grpc_port, self.metrics_port = ports
        self._ports = ExitStack()
        self._ports.enter_context(reserved(ports, "127.0.0.1"))
        self.log_path = work / "server.log"
        command = [
            home / "bin" / "tritonserver",
            f"--model-repository={repository.path}",
            f"--backend-directory={backends}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--metrics-address=127.0.0.1",
            "--exit-timeout-secs=10",
            *options,
        ]
        defaults = {"PYTHONPATH": FAKE_ENGINE_PATH, "LD_PRELOAD": str(find_guard_library())}
        environment = os.environ | defaults | (environment or {})
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_ready(self, seconds: float = 300) -> Server:
        """tritonserver opens the port of its metrics last, after it has said that it is ready."""
        has_ended = self.process.poll
        wait_for(lambda: has_ended() is not None or (self.is_ready() and self.has_metrics()), seconds)
        assert self.process.poll() is None, self.log()
        self._ports.close()
        return self

    def is_ready(self) -> bool:
        try:
            return self.get("/v2/health/ready")[0] == 200
        except OSError:
            return False

    def has_metrics(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.metrics_port), timeout=180).close()
        except OSError:
            return False
        return True

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=180)

    def get(self, path: str) -> tuple[int, str]:
        return self.request("GET", path)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        connection = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def generate(self, model: str, **body: Any) -> dict[str, Any]:
        """The one response of /generate; an error fails the test with the server's message."""
        status, text = self._generate(model, "generate", body)
        assert status == 200, text
        return dict(json.loads(text))

    def generate_error(self, model: str, **body: Any) -> tuple[int, str]:
        status, text = self._generate(model, "generate", body)
        assert status != 200, text
        return status, str(json.loads(text)["error"])

    def generate_stream(self, model: str, **body: Any) -> list[dict[str, Any]]:
        """Every event of /generate_stream."""
        status, text = self._generate(model, "generate_stream", body)
        assert status == 200, text
        return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]

    def _generate(self, model: str, call: str, fields: dict[str, Any]) -> tuple[int, str]:
        tensors, parameters = split(model, fields)
        return self.request("POST", f"/v2/models/{model}/{call}", tensors | parameters)

    def page(self) -> Page:
        return Page.scrape(f"http://127.0.0.1:{self.metrics_port}/metrics")

    def metrics(self) -> dict[str, float]:
        """Values of the generation model's series by name; those of one name are added."""
        values: dict[str, float] = {}
        for (name, labels), value in self.page().ours().items():
            assert {("model_name", "ensemble"), ("model", "ensemble"), ("version", "1")} <= set(labels)
            values[name] = values.get(name, 0) + value
        return values

    def stop(self) -> None:
        self._ports.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def serving(work: Path, **engine: Any) -> Iterator[Server]:
    """A server, which must leave no request open: Triton ends with status 1 when it still counts one."""
    server = Server(Repository(work / "models", **engine), work)
    try:
        yield server.wait_ready()
    finally:
        server.stop()
    assert server.process.returncode == 0, server.log()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until the condition holds; fails when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)


StartServer = Callable[..., Server]
