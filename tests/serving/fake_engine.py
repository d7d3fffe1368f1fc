"""An engine without a model: speaks the wire of cpp/include/quire/wire.h and echoes prompts.

Started by the backend as ``python -m fake_engine --config <model.json> --fd <N> --settings-fd <N> [--loaded
<text>]`` (config.pbtxt: engine_module). A request's answer is its prompt, over and over, up to max_tokens.
Token id i reads "t<i>", words are joined by spaces, so every test knows the exact text. Some prompt ids have
a meaning, see below.

The config, a test's knobs, is read from its file at every start: {"step_seconds", "max_model_len",
"max_num_seqs", "start_error", "start_exit_code", "start_seconds", "vocabulary", "loaded", "log"}. With "log",
one JSON line for each event, with its time. The event "start" has what the backend handed over: the settings,
and --loaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _core_parts
import wire_format as wire

VOCAB_SIZE = 1000
TIME_TO_FIRST_TOKEN, GAP = map(
    _core_parts.histograms().index, ("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds")
)
END_ID = 0  # special: has no text
CRASH_ID = 900  # the engine kills itself before the answer's third token
ERROR_ID = 901  # the engine refuses the request
STOP_ID = (
    902  # when an answer comes to it, the answer ends there, with finish reason "stop" and without its text
)
STALL_ID = 903  # the answer stops coming at this id, but does not end
EXIT_ID = 904  # like CRASH_ID, but the engine exits with code 7
GARBAGE_ID = 905  # the engine says something that is no frame


def token_table(texts: list[bytes], special: set[int], separator: bytes = b" ") -> bytes:
    """TokenTable::serialize() of a table of joined words."""
    kind_joined, strip_nothing = 2, 0
    flags = bytes(1 if i in special else 0 for i in range(len(texts)))
    offsets = [0, *itertools.accumulate(map(len, texts))]
    layout = {
        "kind": "I",
        "strip_left": "i",
        "separator": "bytes",
        "flags": "bytes",
        "offsets": ["I"],
        "texts": "bytes",
    }
    values = (kind_joined, strip_nothing, separator, flags, offsets, b"".join(texts))
    return wire.write(layout, dict(zip(layout, values, strict=True)))


def ready_frame(config: dict[str, Any], table: bytes) -> bytes:
    ready = {
        "model": "fake",
        "max_model_len": config.get("max_model_len", 4096),
        "vocab_size": VOCAB_SIZE,
        "block_size": 16,
        "num_blocks": 512,
        "max_num_seqs": config.get("max_num_seqs", 256),
        "max_num_batched_tokens": 2048,
        "defaults": wire.DEFAULT_PARAMS,
        "token_table": table,
        "vocabulary": config.get("vocabulary", ""),
        "loaded": config.get("loaded", ""),
        "disable_log_stats": config.get("disable_log_stats", False),
        "cache_config": [{"name": "block_size", "value": "16"}],
        "stats": wire.NO_STATS | {"num_blocks": 512, "num_free_blocks": 512},
    }
    return wire.frame(wire.READY, wire.write(wire.READY_FRAME, ready))


@dataclass
class Request:
    request_id: int
    prompt: list[int]
    max_tokens: int
    has_text: bool = True  # detokenize
    arrival_ns: int = 0
    tokenize_ns: int = 0
    deadline_ns: int = 0
    return_receipt: bool = False
    index: int = 0  # of n; begins so many ids further on in the prompt
    num_out: int = 0
    admitted_ns: int = field(default_factory=time.monotonic_ns)
    first_token_ns: int = 0

    @classmethod
    def of(cls, addition: dict[str, Any]) -> Request:
        """The first sequence of an addition as the wire has it."""
        params = addition["params"]
        times = (addition[name] for name in ("arrival_ns", "tokenize_ns", "deadline_ns"))
        return cls(
            addition["request_id"],
            addition["prompt_ids"],
            params["max_tokens"] or 16,
            params["detokenize"],
            *times,
            return_receipt=addition["return_receipt"],
        )

    def finish_reason(self) -> str | None:
        if self.num_out and self.token(self.num_out - 1) == STOP_ID:
            return "stop"
        return "length" if self.num_out >= self.max_tokens else None

    def token(self, idx: int) -> int:
        return self.prompt[(self.index + idx) % len(self.prompt)]


@dataclass
class Release:
    """One release of a step, see Release in cpp/include/quire/request.h."""

    request: Request
    ids: list[int] = field(default_factory=list)
    num_text_ids: int = 0
    is_first: bool = False
    finish_reason: str | None = None
    error: str = ""

    def receipt(self) -> bytes:
        """RequestTiming in cpp/include/quire/request_timing.h, with counts that a test recognizes."""
        request, now = self.request, time.monotonic_ns()
        first_token_ns = request.first_token_ns or now
        times = (request.arrival_ns, request.tokenize_ns, request.admitted_ns, first_token_ns, now)
        return struct.pack("<5q10I", *times, len(request.prompt), request.num_out, 1, 2, 3, 4, 5, 6, 7, 0)


def step_frame(step: int, num_running: int, num_generated: int, releases: list[Release]) -> bytes:
    stats = {
        "step": step,
        "num_running": num_running,
        "num_free_blocks": 512 - num_running,
        "num_blocks": 512,
        "num_generation_tokens": num_generated,
    }
    token_ids: list[int] = []
    encoded = []
    for r in releases:
        details = {
            "error": r.error,
            "stop_token_id": STOP_ID if r.finish_reason == "stop" else -1,
            "timing": r.receipt() if r.finish_reason and r.request.return_receipt else None,
        }
        release = {
            "request_id": r.request.request_id,
            "index": r.request.index,
            "ids_begin": len(token_ids),
            "num_ids": len(r.ids),
            "num_text_ids": r.num_text_ids,
            "is_first": r.is_first,
            "finish_reason": wire.FINISH_REASONS.index(r.finish_reason or ""),
            "usage": wire.NO_RELEASE["usage"] | {"num_prompt_tokens": len(r.request.prompt)},
            "details": wire.NO_DETAILS | details if r.finish_reason else None,
        }
        encoded.append(wire.NO_RELEASE | release)
        token_ids += r.ids
    # Half a second to the first token of each sequence that ends, and 10 ms since the last of each other.
    num_ends = sum(r.finish_reason is not None for r in releases)
    frame = {
        "stats": wire.NO_STATS | stats,
        "releases": encoded,
        "token_ids": token_ids,
        "observations": [(0.5, TIME_TO_FIRST_TOKEN, num_ends), (0.01, GAP, len(releases) - num_ends)],
    }
    return wire.frame(wire.STEP, wire.write(wire.STEP_FRAME, frame))


class Engine:
    def __init__(self, sock: socket.socket, config: dict[str, Any]) -> None:
        self.sock = sock
        self.step_seconds: float = config.get("step_seconds", 0.002)
        self.log_path: str | None = config.get("log")
        self.running: dict[tuple[int, int], Request] = {}
        self.received = b""
        self.step = 0
        self.num_generated = 0
        self.refused: list[Release] = []

    def log(self, event: str, **fields: Any) -> None:
        if self.log_path:
            with Path(self.log_path).open("a") as file:
                file.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")

    def intake(self) -> bool:
        """Reads what is there; false when the server is gone."""
        data = self.sock.recv(1 << 20)
        self.received += data
        while len(self.received) >= 12:
            magic, version, kind, size = struct.unpack_from("<4sHHI", self.received)
            assert (magic, version, kind) == (wire.MAGIC, wire.VERSION, wire.REQUESTS)
            if len(self.received) < 12 + size:
                break
            frame = wire.read(wire.REQUESTS_FRAME, self.received[12 : 12 + size])
            additions, cancellations = frame["additions"], frame["cancellations"]
            self.received = self.received[12 + size :]
            self.log("frame", additions=len(additions), cancellations=len(cancellations))
            for addition in additions:
                self.add(addition)
            for request_id in cancellations:
                keys = [key for key in self.running if key[0] == request_id] or [(request_id, 0)]
                for key in keys:
                    request = self.running.pop(key, None)
                    self.log("cancel", request_id=request_id, num_out=request.num_out if request else None)
        return bool(data)

    def add(self, addition: dict[str, Any]) -> None:
        request, params = Request.of(addition), addition["params"]
        rest = {name: addition[name] for name in ("priority", "arrival_ns", "tokenize_ns", "deadline_ns")}
        self.log("add", request_id=request.request_id, prompt=request.prompt, **rest, **params)
        if ERROR_ID in request.prompt:
            error = "input_ids: got id 901; allowed: ids that the fake engine likes"
            self.refused.append(Release(request, finish_reason="error", error=error))
            return
        for index in range(params["n"]):
            self.running[request.request_id, index] = replace(request, index=index)

    def advance(self, request: Request) -> Release | None:
        if 0 < request.deadline_ns <= time.monotonic_ns():
            error = "" if request.num_out else "deadline exceeded: passed before the first token"
            return Release(request, finish_reason="deadline", error=error)
        token = request.token(request.num_out)
        if token == STALL_ID:
            return None
        if request.num_out == 2 and CRASH_ID in request.prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if request.num_out == 2 and EXIT_ID in request.prompt:
            os._exit(7)
        if request.num_out == 2 and GARBAGE_ID in request.prompt:
            self.sock.sendall(b"this is not a frame")
        is_first = all(request.token(i) == END_ID for i in range(min(request.num_out, len(request.prompt))))
        request.num_out += 1
        request.first_token_ns = request.first_token_ns or time.monotonic_ns()
        self.num_generated += 1
        return Release(
            request, [token], int(request.has_text and token != STOP_ID), is_first, request.finish_reason()
        )

    def run_step(self) -> None:
        self.step += 1
        advanced = [self.advance(request) for request in list(self.running.values())]
        releases = [release for release in advanced if release] + self.refused
        self.refused = []
        for release in releases:
            if release.finish_reason:
                self.running.pop((release.request.request_id, release.request.index), None)
                self.log("finish", request_id=release.request.request_id, num_out=release.request.num_out)
        if releases:
            self.sock.sendall(step_frame(self.step, len(self.running), self.num_generated, releases))

    def serve(self) -> None:
        next_step = time.monotonic()
        while True:
            busy = self.running or self.refused
            timeout = max(0.0, next_step - time.monotonic()) if busy else None
            if select.select([self.sock], [], [], timeout)[0] and not self.intake():
                self.log("end")
                return
            if (self.running or self.refused) and time.monotonic() >= next_step:
                self.run_step()
                next_step = time.monotonic() + self.step_seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--settings-fd", type=int, required=True)
    parser.add_argument("--loaded", default="")
    args = parser.parse_args()
    with os.fdopen(args.settings_fd) as file:
        settings = file.read()
    config = json.loads(args.config.read_text())
    sock = socket.socket(fileno=args.fd)
    engine = Engine(sock, config)
    engine.log("begin", pid=os.getpid())
    time.sleep(config.get("start_seconds", 0))
    while "start_file" in config and not Path(config["start_file"]).exists():
        time.sleep(0.01)
    if "start_exit_code" in config:
        raise SystemExit(config["start_exit_code"])
    if "start_error" in config:
        sock.sendall(wire.frame(wire.START_ERROR, config["start_error"].encode()))
        return
    fds = sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    engine.log("start", pid=os.getpid(), fds=fds, settings=settings, loaded=args.loaded)
    texts = [f"t{i}".encode() for i in range(VOCAB_SIZE)]
    sock.sendall(ready_frame(config, token_table(texts, {END_ID})))
    engine.serve()


if __name__ == "__main__":
    main()
