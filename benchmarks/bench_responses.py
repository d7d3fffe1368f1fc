"""Responses per second through generation and detokenizer: many streams, a fake engine, a counting client.

    python benchmarks/bench_responses.py [--streams 256] [--seconds 10] [--step-ms 5] [--no-guard]
                                         [--no-metrics]

A real tritonserver runs the native backend; an ensemble of its two roles streams to raw HTTP connections. The
engine (this file again, as a module) sends one pre-encoded frame per step, so that what is measured is the
response path. A step releases one id per stream; what comes faster than a stream takes it is merged, so
responses/s is the figure of the path and tokens/s that of the engine. Every id is one letter; at the end each
stream must have all its letters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("serving/backend", "serving", "common")]

import fake_engine as fake  # noqa: E402
import wire_format as wire  # noqa: E402
from quire.triton.installation import find_guard_library  # noqa: E402
from quire.triton.server import HTTP_THREADS  # noqa: E402


def run_engine(
    sock: socket.socket, streams: int, tokens: int, step_seconds: float, disable_log_stats: bool
) -> None:
    """Waits for all requests, then sends `tokens` frames, the same each time but for the last."""
    texts = [b"a"] * fake.VOCAB_SIZE
    config = {"max_model_len": 1 << 30, "disable_log_stats": disable_log_stats}
    sock.sendall(fake.ready_frame(config, fake.token_table(texts, set(), separator=b"")))
    received, requests = b"", []
    while True:
        while len(requests) < streams:
            data = sock.recv(1 << 20)
            if not data:
                return
            received += data
            while len(received) >= 12 and len(received) >= 12 + (
                size := struct.unpack_from("<I", received, 8)[0]
            ):
                additions = wire.read(wire.REQUESTS_FRAME, received[12 : 12 + size])["additions"]
                requests += map(fake.Request.of, additions)
                received = received[12 + size :]
        frames = [
            fake.step_frame(1, streams, tokens, [fake.Release(r, [1], 1, is_first, reason) for r in requests])
            for is_first, reason in ((True, None), (False, None), (False, "length"))
        ]
        next_step = time.monotonic()
        for step in range(tokens):
            sock.sendall(frames[0 if step == 0 else 2 if step == tokens - 1 else 1])
            next_step += step_seconds
            time.sleep(max(0.0, next_step - time.monotonic()))
        requests.clear()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_client(port: int, streams: int, tokens: int) -> tuple[float, list[bytearray]]:
    """Seconds from the first byte to the last, and what each stream received."""
    body = json.dumps({"input_ids": [1], "max_tokens": tokens, "stream": True})
    head = (
        "POST /v2/models/ensemble/generate_stream HTTP/1.1\r\n"
        + f"Host: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    poller = select.epoll()
    sockets: dict[int, socket.socket] = {}
    received: dict[int, bytearray] = {}
    for _ in range(streams):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall((head + body).encode())
        poller.register(sock, select.EPOLLIN)
        sockets[sock.fileno()] = sock
        received[sock.fileno()] = bytearray()
    first, last, num_open = 0.0, 0.0, streams
    while num_open:
        ready = poller.poll(20)
        if not ready:
            break  # what is missing shows in the check of the letters
        last = time.monotonic()
        first = first or last
        for fd, _ in ready:
            data = sockets[fd].recv(1 << 16)
            received[fd] += data
            if not data or data.endswith(b"0\r\n\r\n"):
                poller.unregister(fd)
                num_open -= 1
        # Each wake-up costs every process of this machine; a client elsewhere would not.
        time.sleep(0.002)
    return last - first, list(received.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--step-ms", type=float, default=5, help="time between two steps of the engine")
    parser.add_argument("--http-threads", type=int, default=HTTP_THREADS)
    parser.add_argument(
        "--guard",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="preload libquire_guard.so; without it, few HTTP threads for many streams lose events",
    )
    parser.add_argument(
        "--metrics", action=argparse.BooleanOptionalAction, default=True, help="else disable_log_stats"
    )
    args = parser.parse_args()

    from backend_server import Repository, Server

    tokens = int(args.seconds / args.step_ms * 1000)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        repository = Repository(work / "models")
        repository.edit("generation", '"fake_engine"', '"bench_responses"')
        repository.set_engine(
            streams=args.streams,
            tokens=tokens,
            step_seconds=args.step_ms / 1000,
            disable_log_stats=not args.metrics,
        )
        environment = {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        if args.guard:
            environment["LD_PRELOAD"] = str(find_guard_library())
        server = Server(repository, work, f"--http-thread-count={args.http_threads}", environment=environment)
        try:
            server.wait_ready()
            before = cpu_seconds(server.process.pid)
            seconds, streams = run_client(server.http_port, args.streams, tokens)
            cpu = cpu_seconds(server.process.pid) - before
        finally:
            server.stop()

    responses = sum(stream.count(b"data: ") for stream in streams)
    lost = [tokens - sum(map(len, re.findall(rb'"text_output":"(a*)"', bytes(s)))) for s in streams]
    print(f"{args.streams} streams, {tokens} tokens each, a step every {args.step_ms} ms, {seconds:.2f} s")
    print(f"responses/s          {responses / seconds:12,.0f}")
    print(f"tokens/s             {args.streams * tokens / seconds:12,.0f}")
    print(f"tokens per response  {args.streams * tokens / responses:12.2f}")
    print(f"server CPU           {cpu / responses * 1e6:12.1f} us per response")
    print(f"lost or double ids   {sum(map(abs, lost)):12}")
    if any(lost):
        sys.exit("some streams did not get every id exactly once")


def engine_main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--settings-fd", type=int, required=True)
    args = parser.parse_args()
    with os.fdopen(args.settings_fd) as file:
        config = json.load(file)
    run_engine(
        socket.socket(fileno=args.fd),
        config["streams"],
        config["tokens"],
        config["step_seconds"],
        config["disable_log_stats"],
    )


if __name__ == "__main__":
    engine_main() if "--fd" in sys.argv else main()
