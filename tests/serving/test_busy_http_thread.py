"""HTTP streams on a server whose HTTP thread is busy with another client's large body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quire.triton.server import TritonServer

ROOT = Path(__file__).parents[2]
NUM_STREAMS = 64
MAX_TOKENS = 200


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """With one HTTP thread for all connections, as quiet moments give many to one of several."""
    with TritonServer(ROOT / "model_repository", arguments=["--http-thread-count=1"]) as running:
        yield running


def post(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def events_of(reader: asyncio.StreamReader, started: asyncio.Event) -> list[dict[str, Any]]:
    """All events until the response ends as it should. Sets `started` when it begins."""
    await reader.readuntil(b"\r\n\r\n")
    started.set()
    text = b""
    while size := int((await reader.readline()).strip(), 16):
        text += await reader.readexactly(size)
        await reader.readexactly(2)
    return [json.loads(event.removeprefix(b"data: ")) for event in text.split(b"\n\n") if event]


async def streams_beside(server: TritonServer, megabytes: int) -> list[list[dict[str, Any]]]:
    body = json.dumps(
        {
            "text_input": "def f(a):",
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_num_output_tokens": True,
            "return_finish_reason": True,
        }
    ).encode()
    connections = [
        await asyncio.open_connection("127.0.0.1", server.http_port, limit=2**24)
        for _ in range(NUM_STREAMS + 1)
    ]
    *streams, (_, other) = connections
    for _, writer in streams:
        writer.write(post("/v2/models/ensemble/generate_stream", body))
    started = asyncio.Event()
    readers = [asyncio.create_task(events_of(reader, started)) for reader, _ in streams]
    await started.wait()
    if megabytes:
        pad = json.dumps({"text_input": "x", "max_tokens": 1, "pad": "a" * (megabytes * 10**6)}).encode()
        other.write(post("/v2/models/ensemble/generate", pad))
    events = await asyncio.gather(*readers)
    for _, writer in connections:
        writer.transport.abort()  # the large body may still be on its way
    await asyncio.gather(*(writer.wait_closed() for _, writer in connections))
    return events


@pytest.mark.parametrize("megabytes", [0, 2, 30])
def test_streams_are_whole(server: TritonServer, megabytes: int) -> None:
    """Every stream has all its tokens and its end, however long the thread is busy."""
    streams = asyncio.run(asyncio.wait_for(streams_beside(server, megabytes), 240))
    assert [MAX_TOKENS] * NUM_STREAMS == [
        sum(event["num_output_tokens"] for event in events) for events in streams
    ]
    assert {"length"} == {events[-1]["finish_reason"] for events in streams}
    assert 1 == len({"".join(event["text_output"] for event in events) for events in streams})
