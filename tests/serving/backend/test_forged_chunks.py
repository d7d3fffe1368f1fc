"""A client that calls the detokenizer itself cannot speak for a sequence of another client."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tritonclient.grpc as grpc
from backend_server import Repository, Server, StartServer, wait_for

# The beginning of a chunk: seal, number of chunks, owner, request, index, outputs, is_probe, acknowledge.
HEAD = struct.Struct("<16sIQQII??")


def forge(chunk: list[int], sequence: int) -> list[int]:
    """One's own chunk, as a probe of another sequence."""
    seal, count, owner, _, index, outputs, _, _ = HEAD.unpack(bytes(chunk[: HEAD.size]))
    head = HEAD.pack(seal, count, owner, sequence, index, outputs, True, True)
    return [*head, *chunk[HEAD.size :]]


def cancel(server: Server, chunk: list[int]) -> None:
    """Sends the chunk and cancels the request at once, many times: some are cancelled before they run."""
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        for _ in range(20):
            tensor = grpc.InferInput("chunk", [len(chunk)], "UINT8")
            tensor._raw_content = bytes(chunk)
            client.start_stream(lambda result, error: None)
            for _ in range(5):
                client.async_stream_infer("detokenizer", [tensor])
            client.stop_stream(cancel_requests=True)


def test_chunks_of_another_sequence(start_server: StartServer, tmp_path: Path) -> None:
    """Forged chunks are refused, and neither they nor their cancellation end the stream that they name."""
    repository = Repository(tmp_path / "models", step_seconds=0.05)
    server = start_server(repository).wait_ready()
    own = server.generate("generation", input_ids=[5], max_tokens=1)["chunk"]
    with ThreadPoolExecutor(1) as pool:
        victim = pool.submit(server.generate_stream, "ensemble", input_ids=[1], max_tokens=60, stream=True)
        wait_for(lambda: repository.events("add", prompt=[1]))
        (added,) = repository.events("add", prompt=[1])
        forged = forge(own, int(added["request_id"]))
        status, error = server.generate_error("detokenizer", chunk=forged)
        assert (status, error[:11]) == (400, "chunk: got ")
        cancel(server, forged)
        assert "".join(event["text_output"] for event in victim.result()) == " ".join(["t1"] * 60)
    assert not repository.events("cancel")
