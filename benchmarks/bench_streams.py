"""HTTP streams of a real server beside large bodies of another client: none may be short.

    quire bench streams [--shape 8b|1b|quire-8m] [--model DIR] [--streams N ...] [--megabytes N ...]
                        [--tokens N] [--no-guard] [--json OUT] [--settings KEY=VALUE ...]

Starts a tritonserver, opens the connections one after the other (so that many share an HTTP thread), starts
all streams, and while they run posts one body of the size to the same server. Prints one JSON line for each
number of streams and size: how many streams ended with fewer tokens than asked for and no error, how many
had not ended after 20 silent seconds, the tokens that are missing, and the rate. The client is eight
processes that only read; what came is counted afterwards.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench_serve import ENSEMBLE, make_repository
from quire.triton.server import TritonServer
from quire_options import add_options, max_id_of, model_folder, settings_of, write_rows
from word_model import text_of
from workload import Case, percentile, prompts

_PROCESSES = 8
_PATIENCE = 20.0  # seconds without a byte
_BODY_DELAY = 0.1  # after the requests: streams of a fast model are short
_PAUSE = 0.01  # between two connections
_PROMPT_TOKENS = 32


def post(path: str, body: bytes) -> bytes:
    head = f"POST /v2/models/{ENSEMBLE}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def client(port: int, bodies: list[bytes], pipe: Connection) -> None:
    """Opens a connection for each body, waits for the word, sends all; answers when and what came."""
    sockets = {}
    for body in bodies:
        sock = socket.create_connection(("127.0.0.1", port))
        sockets[sock.fileno()] = (sock, post("generate_stream", body))
        time.sleep(_PAUSE)
    pipe.send("open")
    pipe.recv()
    poller = select.epoll()
    began, first, last = {}, {}, {}
    received: dict[int, bytearray] = {}
    for fd, (sock, request) in sockets.items():
        began[fd] = time.monotonic()
        sock.sendall(request)
        poller.register(fd, select.EPOLLIN)
        received[fd] = bytearray()
    num_open = len(sockets)
    while num_open and (ready := poller.poll(_PATIENCE)):
        now = time.monotonic()
        for fd, _ in ready:
            data = sockets[fd][0].recv(1 << 16)
            received[fd] += data
            first.setdefault(fd, now)
            last[fd] = now
            if not data or data.endswith(b"0\r\n\r\n"):
                poller.unregister(fd)
                num_open -= 1
    pipe.send([(began[fd], first.get(fd), last.get(fd), bytes(received[fd])) for fd in sockets])


def measure(port: int, num_streams: int, megabytes: int, tokens: int, max_id: int) -> dict[str, Any]:
    asked = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0}
    fields = {"stream": True, "return_num_output_tokens": True, "sampling_parameters": json.dumps(asked)}
    case = Case(_PROMPT_TOKENS, tokens, num_streams, num_streams, 0)
    bodies = [json.dumps({"text_input": text_of(ids), **fields}).encode() for ids in prompts(case, max_id)]
    context = multiprocessing.get_context("spawn")
    workers = []
    for index in range(min(_PROCESSES, num_streams)):
        ours, theirs = context.Pipe()
        arguments = (port, bodies[index :: min(_PROCESSES, num_streams)], theirs)
        workers.append((context.Process(target=client, args=arguments, daemon=True), ours))
    other = None
    for process, pipe in workers:  # one after the other, as connections in quiet moments
        process.start()
        pipe.recv()
    other = socket.create_connection(("127.0.0.1", port))
    for _, pipe in workers:
        pipe.send("go")
    if megabytes:
        time.sleep(_BODY_DELAY)
        pad = json.dumps({"text_input": "w10", "max_tokens": 1, "pad": "a" * (megabytes * 1_000_000)})
        other.sendall(post("generate", pad.encode()))
    results = [result for _, pipe in workers for result in pipe.recv()]
    for process, _ in workers:
        process.join()
    other.close()
    counts = [sum(map(int, re.findall(rb'"num_output_tokens":(\d+)', text))) for *_, text in results]
    has_ended = [text.endswith(b"0\r\n\r\n") for *_, text in results]
    seconds = max(last for _, _, last, _ in results if last) - min(began for began, *_ in results)
    return {
        "streams": num_streams,
        "megabytes": megabytes,
        "tokens": tokens,
        "short": sum(
            ended and count < tokens and b'"error"' not in text
            for ended, count, (*_, text) in zip(has_ended, counts, results, strict=True)
        ),
        "errors": sum(b'"error"' in text for *_, text in results),
        "not_ended": has_ended.count(False),
        "tokens_lost": num_streams * tokens - sum(counts),
        "out_tok_s": round(sum(counts) / seconds, 1),
        "events": sum(text.count(b"data: ") for *_, text in results),
        "ttft_p50_ms": round(percentile([1e3 * (f - b) for b, f, *_ in results if f], 50), 2),
    }


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with (
        model_folder(options.shape, options.model) as model,
        tempfile.TemporaryDirectory(prefix="quire-bench-") as name,
    ):
        settings = {"max_num_seqs": max(options.streams), **settings_of("quire-8m", options.settings, model)}
        repository = make_repository(Path(name) / "models", {"model": str(model), **settings})
        with TritonServer(repository, with_guard=options.guard, start_timeout=600) as server:
            max_id = max_id_of(model)
            measure(server.http_port, 8, 0, 32, max_id)  # warm up
            for num_streams in options.streams:
                for megabytes in options.megabytes:
                    row = measure(server.http_port, num_streams, megabytes, options.tokens, max_id)
                    yield {"tag": f"streams-{options.shape}", "guard": options.guard, **row}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quire bench streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 200])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[0, 30])
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument(
        "--guard", action=argparse.BooleanOptionalAction, default=True, help="preload libquire_guard.so"
    )
    options = parser.parse_args()
    write_rows("bench streams", run(options), options.json)


if __name__ == "__main__":
    main()
