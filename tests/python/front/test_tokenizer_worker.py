"""The tokenizer's process: frames of the server in, frames with tensors or errors out."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from quire.tokenizer import Tokenizer
from quire.triton import tokenizer_worker as worker
from quire.triton.tensors import StageRequest

TENSORS = {
    "bools": np.asarray([True, False]),
    "ints": np.asarray([[1, -2], [3, 4]], np.int64),
    "floats": np.asarray([0.5], np.float32),
    "texts": np.asarray([b"a", b"\xff"], np.object_),
    "none": np.asarray([], np.int32),
}
PARAMETERS = {"text": "ü", "whole": -(2**62), "yes": True, "number": 0.1}
KINDS = {str: 0, int: 1, bool: 2, float: 3}


def string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(content)) + content


def request_frame(tensors: dict, parameters: dict, outputs: tuple[str, ...]) -> memoryview:
    """Writes a request as cpp/triton/tokenizer.cc does; a tensor looks the same in both directions."""
    frame = [struct.pack("<qI", 7, len(tensors)), *(worker._tensor(*item) for item in tensors.items())]
    frame.append(struct.pack("<I", len(parameters)))
    for name, value in parameters.items():
        kind = KINDS[type(value)]
        content = string(value) if kind == 0 else struct.pack(f"<{'?q?d'[kind]}", value)
        frame += [string(name), struct.pack("<B", kind), content]
    frame += [struct.pack("<I", len(outputs)), *map(string, outputs)]
    return memoryview(b"".join(frame))


def test_requests_arrive_whole() -> None:
    """Tensors of every kind, parameters of every type, and the outputs that are wanted."""
    request = worker.read_request(request_frame(TENSORS, PARAMETERS, ("a", "b")))
    assert {name: tensor.tolist() for name, tensor in request.tensors.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }
    assert request.tensors["ints"].shape == (2, 2)
    assert (dict(request.parameters), request.outputs) == (PARAMETERS, frozenset("ab"))
    assert request.arrival_ns == 7


def test_a_tensor_that_does_not_fit_its_shape() -> None:
    """Bytes that do not fit the shape are the client's mistake, under the tensor's name."""
    frame = bytes(request_frame({"ints": np.asarray([1, 2], np.int32)}, {}, ()))
    damaged = frame.replace(struct.pack("<q", 2), struct.pack("<q", 3))
    kind, payload = worker.answer_to(memoryview(damaged), lambda request: {})
    assert (kind, payload[:4]) == (worker.ERROR, struct.pack("<I", worker.INVALID_ARG))
    assert payload[8:] == b"ints: got 2 values; allowed: as many as its shape [3] says"


class Panic(BaseException):
    """As what `tokenizers` raises for a bug of its own."""


@pytest.mark.parametrize("error", [RuntimeError("/a/path"), MemoryError(), Panic("/a/path")])
def test_failures_are_answered(error: BaseException) -> None:
    """Whatever fails is an internal error without details, and no reason to end."""

    def fail(request: StageRequest) -> dict:
        raise error

    kind, payload = worker.answer_to(request_frame({}, {}, ()), fail)
    assert (kind, payload[:4]) == (worker.ERROR, struct.pack("<I", worker.INTERNAL))
    assert payload[8:].decode() == (
        f"tokenizer: an internal error ({type(error).__name__}); the server's log says more"
    )


def test_only_what_is_wanted_is_sent() -> None:
    """Outputs that nobody asked for do not cross the socket."""
    kind, payload = worker.answer_to(request_frame({}, {}, ("ints",)), lambda request: TENSORS)
    assert kind == worker.ANSWER
    assert payload == struct.pack("<I", 1) + worker._tensor("ints", TENSORS["ints"])


class Process:
    """A worker as the server starts one."""

    def __init__(self, folder: Path, snapshot: bytes = b"") -> None:
        ours, theirs = socket.socketpair()
        self.socket = worker.Connection(ours)
        self.raw = ours
        command = [sys.executable, "-m", "quire.triton.tokenizer_worker", "--parent", str(os.getpid())]
        self.process = subprocess.Popen([*command, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(120)
        self.socket.send(worker.SETTINGS, string(str(folder)) + struct.pack("<I", 0) + string(snapshot))

    def receive(self) -> tuple[int, bytes]:
        size, kind = struct.unpack("<II", self.raw.recv(8, socket.MSG_WAITALL))
        return kind, self.raw.recv(size, socket.MSG_WAITALL)


@pytest.fixture
def start(
    tmp_path: Path, byte_level_model: Path, make_repository: Callable[[Path, Path], Path]
) -> Iterator[Callable[[bytes], Process]]:
    folder = make_repository(tmp_path, byte_level_model) / "tokenizer"
    started: list[Process] = []

    def start(snapshot: bytes = b"") -> Process:
        started.append(Process(folder, snapshot))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        one.raw.close()


def test_a_later_worker_needs_no_files(
    start: Callable[..., Process], tmp_path: Path, byte_level_model: Path
) -> None:
    """The first one hands out what it has read; the next starts from that, and ends when the server does."""
    kind, payload = start().receive()
    assert kind == worker.READY
    (tmp_path / "generation" / "1" / "model.json").unlink()
    later = start(payload[4:])
    assert later.receive() == (worker.READY, payload)
    tensors = {"text_input": np.asarray([b"zwei"], np.object_)}
    later.socket.send(worker.REQUEST, bytes(request_frame(tensors, {}, ("input_ids",))))
    ids = np.asarray(Tokenizer(byte_level_model).encode("zwei"), np.int32)
    expected = struct.pack("<I", 1) + worker._tensor("input_ids", ids)
    assert later.receive() == (worker.ANSWER, expected)
    later.raw.close()
    assert later.process.wait(120) == 0

    kind, payload = start().receive()
    assert kind == worker.ERROR
    assert b"no such file; allowed: a JSON file with engine settings" in payload


def test_it_ends_with_the_server_even_when_stopped(
    start: Callable[..., Process], tmp_path: Path, byte_level_model: Path
) -> None:
    """A worker whose server is killed ends, also one that a signal has stopped and that reads no socket."""
    program = (
        "import os, signal, subprocess, sys, time\n"
        "command = [sys.executable, '-m', 'quire.triton.tokenizer_worker', '--parent', str(os.getpid())]\n"
        "child = subprocess.Popen([*command, '--fd', '0'], stdin=int(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    ours, theirs = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(theirs.fileno())],
        stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    assert server.stdout
    pid = int(server.stdout.readline())
    folder = tmp_path / "tokenizer"
    start()  # for the folder
    ours.settimeout(120)
    worker.Connection(ours).send(worker.SETTINGS, string(str(folder)) + struct.pack("<I", 0) + string(b""))
    assert struct.unpack("<II", ours.recv(8, socket.MSG_WAITALL))[1] == worker.READY
    os.kill(pid, signal.SIGSTOP)
    server.kill()
    server.wait()
    ours.settimeout(120)
    while ours.recv(1 << 16):  # to the end of file: the process is gone
        pass
    server.stdout.close()
    ours.close()
