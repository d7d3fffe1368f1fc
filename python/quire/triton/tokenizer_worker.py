"""``python -m quire.triton.tokenizer_worker --fd N --parent PID``: tokenizes for one instance of a model.

The Triton backend starts it, gives it one request at a time over the socket N, and replaces it when it ends.
cpp/triton/tokenizer_worker.h says what the frames hold.

Exit status 0: the server is gone. 1: it could not start, and the server got the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quire.end_with_parent import end_with_parent
from quire.errors import InvalidArgument, QuireError, told
from quire.triton.tensors import StageRequest, Tensor, read_strings

SETTINGS, REQUEST, READY, ANSWER, ERROR = range(1, 6)  # types of frames
INTERNAL, INVALID_ARG = 1, 3  # codes of errors
_HEADER = struct.Struct("<II")
_OOM_SCORE = "500"

_STRING = 13
# In the order of Triton's codes, from 1 (BOOL) to 12 (FP64). numpy has no bfloat16.
_NUMBERS = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_DTYPES = {code: np.dtype(name) for code, name in enumerate(_NUMBERS, 1)}
_CODES = {dtype: code for code, dtype in _DTYPES.items()} | {np.dtype(np.object_): _STRING}

log = logging.getLogger("quire.tokenizer")

Answer = Callable[[StageRequest], Mapping[str, Tensor]]
# From the model's folder, its parameters in config.pbtxt, and the snapshot of the load (b"" for its first
# worker): what answers requests, and the snapshot for the workers after this one.
Start = Callable[[Path, Mapping[str, str], bytes], tuple[Answer, bytes]]


def start_stage(folder: Path, parameters: Mapping[str, str], snapshot: bytes) -> tuple[Answer, bytes]:
    """The generation model's tokenizer; a Start."""
    from quire.triton.tokenizer_settings import TokenizerSettings

    if snapshot:
        settings = TokenizerSettings.from_bytes(snapshot)
    else:
        settings = TokenizerSettings.read(folder, parameters)
    return settings.make_stage(parameters).answer, snapshot or settings.to_bytes()


def main(start: Start = start_stage) -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.triton.tokenizer_worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the connected stream socket to serve")
    parser.add_argument(
        "--parent", type=int, required=True, help="the server's process, which this one ends with"
    )
    arguments = parser.parse_args()
    end_with_parent(arguments.parent)
    with contextlib.suppress(OSError):  # where memory runs out, the server and the engine shall not go first
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    faulthandler.enable()
    logging.basicConfig(format="%(asctime)s quire.tokenizer %(levelname)s %(message)s", level=logging.INFO)
    # Control-C reaches the whole process group. The server closes the socket when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=arguments.fd) as connection:
        serve(Connection(connection), start)
    return 0


def serve(connection: Connection, start: Start) -> None:
    """Until the server is gone. `start` is called with the first frame."""
    try:
        first = connection.receive()
        if first is None:
            return
        reader = Reader(first)
        folder = Path(reader.string())
        parameters = {reader.string(): reader.string() for _ in range(reader.number("I"))}
        answer, snapshot = start(folder, parameters, bytes(reader.bytes()))
    except BaseException as error:  # a panic of `tokenizers` is no Exception
        log.error("cannot start: %s", error, exc_info=not isinstance(error, QuireError))
        connection.send(ERROR, _error(INTERNAL, " ".join(told(error).split())))
        sys.exit(1)
    connection.send(READY, _string(snapshot))
    while (payload := connection.receive()) is not None:
        connection.send(*answer_to(payload, answer))


def answer_to(payload: memoryview, answer: Answer) -> tuple[int, bytes]:
    """The frame that answers a request: its type and its content."""
    try:
        request = read_request(payload)
        tensors = answer(request)
        wanted = {name: tensor for name, tensor in tensors.items() if name in request.outputs}
        return ANSWER, struct.pack("<I", len(wanted)) + b"".join(
            _tensor(name, tensor) for name, tensor in wanted.items()
        )
    except InvalidArgument as error:
        return ERROR, _error(INVALID_ARG, str(error))
    except BaseException as error:
        log.exception("a request failed")
        message = f"tokenizer: an internal error ({type(error).__name__}); the server's log says more"
        return ERROR, _error(INTERNAL, message)


class Connection:
    """Whole frames over the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def receive(self) -> memoryview | None:
        """The next frame's payload; None where the server is gone."""
        with contextlib.suppress(ConnectionResetError):
            header = self._socket.recv(_HEADER.size, socket.MSG_WAITALL)
            if len(header) == _HEADER.size:
                size, _ = _HEADER.unpack(header)
                payload = self._socket.recv(size, socket.MSG_WAITALL)
                return memoryview(payload) if len(payload) == size else None
        return None

    def send(self, kind: int, payload: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # receive() will find out
            self._socket.sendall(_HEADER.pack(len(payload), kind) + payload)


class Reader:
    """Takes values from the front of a frame."""

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 0

    def number(self, kind: str) -> Any:
        """`kind`: as `struct` calls it."""
        [value] = struct.unpack_from(f"<{kind}", self._payload, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return value

    def bytes(self) -> memoryview:
        size = self.number("I")
        self._at += size
        return self._payload[self._at - size : self._at]

    def string(self) -> str:
        # Names of parameters come from clients.
        return str(self.bytes(), "utf-8", "surrogateescape")


def read_request(payload: memoryview) -> StageRequest:
    """Raises InvalidArgument that names the tensor or parameter which cannot be read."""
    reader = Reader(payload)
    arrival_ns = reader.number("q")
    tensors = {}
    for _ in range(reader.number("I")):
        name, code = reader.string(), reader.number("I")
        shape = [reader.number("q") for _ in range(reader.number("I"))]
        tensors[name] = _read_tensor(name, code, shape, reader.bytes())
    parameters = [(reader.string(), _read_parameter(reader)) for _ in range(reader.number("I"))]
    outputs = frozenset(reader.string() for _ in range(reader.number("I")))
    return StageRequest(tensors=tensors, parameters=parameters, outputs=outputs, arrival_ns=arrival_ns)


def _read_tensor(name: str, code: int, shape: list[int], content: memoryview) -> Tensor:
    if code == _STRING:
        return read_strings(name, shape, content)
    if code not in _DTYPES:
        raise InvalidArgument(name, f"a tensor of type {code}", "a type that numpy has, or STRING")
    values: Tensor = np.frombuffer(content, _DTYPES[code])
    if any(size < 0 for size in shape) or values.size != int(np.prod(shape, dtype=object)):
        raise InvalidArgument(name, f"{values.size} values", f"as many as its shape {shape} says")
    return values.reshape(shape)


def _read_parameter(reader: Reader) -> object:
    kind = reader.number("B")
    if kind == 0:
        return reader.string()
    return reader.number({1: "q", 2: "?", 3: "d"}[kind])


def _string(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _tensor(name: str, value: Tensor) -> bytes:
    content = b"".join(map(_string, value.reshape(-1))) if value.dtype == np.object_ else value.tobytes()
    head = struct.pack(f"<II{value.ndim}q", _CODES[value.dtype], value.ndim, *value.shape)
    return _string(name.encode()) + head + _string(content)


def _error(code: int, message: str) -> bytes:
    return struct.pack("<I", code) + _string(message.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
