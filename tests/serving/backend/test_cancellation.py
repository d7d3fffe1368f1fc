"""A client that goes away ends its sequence at the engine."""

from __future__ import annotations

import json
import queue
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc as grpc
from backend_server import Server, grpc_inputs, serving, split, wait_for
from fake_engine import STALL_ID

STEP_SECONDS = 0.1


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("slow"), step_seconds=STEP_SECONDS) as server:
        yield server


def request_fields(model: str, stream: bool, first_id: int) -> dict[str, Any]:
    return {
        "input_ids": [first_id, 2, 3],
        "max_tokens": 1000,
        "stream": stream,
    }


def added(server: Server, prompt: list[int]) -> int | None:
    """The id of the engine's one request with this prompt."""
    events = server.repository.events("add", prompt=prompt)
    assert len(events) <= 1
    return events[0]["request_id"] if events else None


def cancelled(server: Server, request_id: int | None) -> dict[str, Any]:
    """The event of the engine being told of the cancellation; empty when it was not."""
    events = server.repository.events("cancel", request_id=request_id)
    assert len(events) <= 1
    return events[0] if events else {}


class HttpClient:
    def __init__(self, server: Server, model: str, fields: dict[str, Any]) -> None:
        body = json.dumps(fields)
        path = "generate_stream" if fields["stream"] else "generate"
        self.sock = socket.create_connection(("127.0.0.1", server.http_port))
        head = f"POST /v2/models/{model}/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall((head + body).encode())

    def wait_for_responses(self, count: int) -> None:
        data = b""
        while data.count(b"data: ") < count:
            data += self.sock.recv(1 << 16)

    def leave(self) -> None:
        self.sock.close()


class GrpcClient:
    def __init__(self, server: Server, model: str, fields: dict[str, Any]) -> None:
        self.responses: queue.Queue[Any] = queue.Queue()
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.client.start_stream(lambda result, error: self.responses.put((result, error)))
        tensors, parameters = split(model, fields)
        self.client.async_stream_infer(model, grpc_inputs(tensors), parameters=parameters)

    def wait_for_responses(self, count: int) -> None:
        for _ in range(count):
            assert self.responses.get(timeout=120)[1] is None

    def leave(self) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()


# Over HTTP only a client that has received something can be seen to leave: Triton does not read a connection
# between the request and its first response.
@pytest.mark.parametrize(
    ("client_class", "stream"), [(HttpClient, True), (GrpcClient, True), (GrpcClient, False)]
)
@pytest.mark.parametrize("model", ["ensemble", "generation"])
def test_leaving_ends_the_sequence(
    slow_server: Server, client_class: type[HttpClient | GrpcClient], model: str, stream: bool
) -> None:
    """The engine is told long before the answer would have ended, and other streams go on."""
    first_id = 100 + 4 * (client_class is HttpClient) + 2 * (model == "ensemble") + stream
    other = HttpClient(slow_server, "ensemble", request_fields("ensemble", True, 50))
    client = client_class(slow_server, model, request_fields(model, stream, first_id))
    if stream:
        client.wait_for_responses(3)
    else:
        wait_for(lambda: added(slow_server, [first_id, 2, 3]))
        time.sleep(3 * STEP_SECONDS)
    client.leave()
    request_id = added(slow_server, [first_id, 2, 3])
    wait_for(lambda: cancelled(slow_server, request_id))
    assert cancelled(slow_server, request_id)["num_out"] < 100
    other.wait_for_responses(2)
    other.leave()
    answer = slow_server.generate("ensemble", input_ids=[7], max_tokens=2)
    assert answer["text_output"] == "t7 t7"


@pytest.mark.parametrize(
    ("client_class", "stream"), [(HttpClient, True), (GrpcClient, True), (GrpcClient, False)]
)
def test_leaving_a_silent_stream(
    slow_server: Server, client_class: type[HttpClient | GrpcClient], stream: bool
) -> None:
    """Where the engine says nothing for long, probes find out that the client has gone."""
    first_id = 200 + 2 * (client_class is HttpClient) + stream
    fields = request_fields("ensemble", stream, first_id) | {"input_ids": [first_id, STALL_ID]}
    client = client_class(slow_server, "ensemble", fields)
    wait_for(lambda: added(slow_server, [first_id, STALL_ID]))
    time.sleep(0.5)
    client.leave()
    request_id = added(slow_server, [first_id, STALL_ID])
    wait_for(lambda: cancelled(slow_server, request_id))


def test_finished_requests_are_not_cancelled(slow_server: Server) -> None:
    """The engine hears of no request that it has finished itself."""
    slow_server.generate("ensemble", input_ids=[300], max_tokens=2)
    slow_server.generate_stream("ensemble", input_ids=[300], max_tokens=2, stream=True)
    time.sleep(0.3)
    finished = {event["request_id"] for event in slow_server.repository.events("add", prompt=[300])}
    told = {event["request_id"] for event in slow_server.repository.events("cancel")}
    assert len(finished) == 2
    assert not finished & told
