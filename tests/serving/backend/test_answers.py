"""What clients receive: every id once, in order, as exact text, with FINAL once."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tritonclient.grpc as grpc
from backend_server import Server, grpc_inputs, split
from fake_engine import END_ID, STOP_ID


def words(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def cycle(prompt: list[int], count: int) -> list[int]:
    return [prompt[i % len(prompt)] for i in range(count)]


def grpc_stream(server: Server, model: str, outputs: list[str], **fields: Any) -> list[grpc.InferResult]:
    """Every response of one request, up to the one with the final flag; none may follow it."""
    results: queue.Queue[tuple[grpc.InferResult | None, Exception | None]] = queue.Queue()
    received = []
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        tensors, parameters = split(model, fields)
        client.async_stream_infer(
            model,
            grpc_inputs(tensors),
            parameters=parameters,
            outputs=[grpc.InferRequestedOutput(name) for name in outputs],
            enable_empty_final_response=True,
        )
        while True:
            result, error = results.get(timeout=60)
            if error:
                raise error
            assert result is not None
            received.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    assert results.empty()
    return received


def text_of(result: grpc.InferResult) -> str:
    values = result.as_numpy("text_output")
    return "" if values is None else values[0].decode()


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 300])
def test_stream_is_the_exact_text_in_order(server: Server, num_tokens: int) -> None:
    """The joined events of a stream are the text of all ids; the first event is the first id alone."""
    prompt = list(range(1, 60))
    events = server.generate_stream("ensemble", input_ids=prompt, max_tokens=num_tokens, stream=True)
    assert "".join(event["text_output"] for event in events) == words(cycle(prompt, num_tokens))
    assert events[0]["text_output"] == "t1"


@pytest.mark.parametrize("num_tokens", [1, 300])
def test_without_stream_there_is_one_response(server: Server, num_tokens: int) -> None:
    """/generate, which refuses any other number of responses, gets exactly one with the whole text."""
    answer = server.generate("ensemble", input_ids=[5, 6, 7], max_tokens=num_tokens)
    assert answer["text_output"] == words(cycle([5, 6, 7], num_tokens))


def test_generate_stream_of_a_request_that_does_not_stream(server: Server) -> None:
    """Probes and flow control add no events."""
    events = server.generate_stream("ensemble", input_ids=[5, 6, 7], max_tokens=150)
    assert [event["text_output"] for event in events] == [words(cycle([5, 6, 7], 150))]


@pytest.mark.parametrize("stream", [True, False])
def test_grpc_stream(server: Server, stream: bool) -> None:
    """Over gRPC the text is the same and the final flag comes once, with the last response."""
    results = grpc_stream(
        server,
        "ensemble",
        ["text_output"],
        input_ids=[1, 2, 3],
        max_tokens=100,
        stream=stream,
    )
    assert "".join(map(text_of, results)) == words(cycle([1, 2, 3], 100))
    flags = [r.get_response().parameters["triton_final_response"].bool_param for r in results]
    assert flags == [False] * (len(results) - 1) + [True]
    if not stream:
        assert len(results) == 1


@pytest.mark.parametrize("acknowledge", [None, False])
def test_generation_called_directly(server: Server, acknowledge: bool | None) -> None:
    """Without a detokenizer, ids come as they are made, and only the outputs that were asked for."""
    more = {} if acknowledge is None else {"acknowledge": acknowledge}
    results = grpc_stream(
        server,
        "generation",
        ["output_ids", "finish_reason"],
        input_ids=[1, 2, 3],
        max_tokens=50,
        stream=True,
        **more,
    )
    ids = [int(i) for result in results for i in result.as_numpy("output_ids")]
    assert ids == cycle([1, 2, 3], 50)
    assert [r.as_numpy("finish_reason")[0] for r in results] == [b""] * (len(results) - 1) + [b"length"]
    assert {output.name for r in results for output in r.get_response().outputs} == {
        "output_ids",
        "finish_reason",
    }


def test_return_flags(server: Server) -> None:
    """The detokenizer adds finish reason and counts when the request says so; counts are per response."""
    fields = {"input_ids": [1, 2, 3], "max_tokens": 40, "stream": True}
    flags = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    events = server.generate_stream("ensemble", **fields, **dict.fromkeys(flags, True))
    assert [e["finish_reason"] for e in events] == ["None"] * (len(events) - 1) + ["length"]
    assert {e["num_input_tokens"] for e in events} == {3}
    assert sum(e["num_output_tokens"] for e in events) == 40
    (plain,) = {tuple(sorted(e)) for e in server.generate_stream("ensemble", **fields)}
    assert not {"finish_reason", "num_input_tokens", "num_output_tokens"} & set(plain)


def test_outputs_that_are_named(server: Server) -> None:
    """A detokenizer sends the outputs that its client names, of those that the request asks for."""
    flags = dict.fromkeys(["return_finish_reason", "return_num_output_tokens", "return_token_ids"], True)
    [made] = grpc_stream(server, "generation", ["chunk"], input_ids=[1, 2, 3], max_tokens=4, **flags)
    chunk = made.as_numpy("chunk")
    tensor = grpc.InferInput("chunk", list(chunk.shape), "UINT8").set_data_from_numpy(chunk)
    answers: queue.Queue[grpc.InferResult] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for names in (["text_output"], ["output_ids", "finish_reason", "num_input_tokens"]):
            outputs = [grpc.InferRequestedOutput(name) for name in names]
            client.async_stream_infer("detokenizer", [tensor], outputs=outputs)
            given = {output.name for output in answers.get(timeout=60).get_response().outputs}
            assert given == {*names} - {"num_input_tokens"}, "which no field asks for"


@pytest.mark.parametrize("stream", [True, False])
def test_prompt_text_stands_before_the_answer_once(server: Server, stream: bool) -> None:
    """The prompt's text is in the first response and in no other."""
    events = server.generate_stream(
        "ensemble", input_ids=[8, 9], max_tokens=20, stream=stream, prompt_text="Vöx: "
    )
    assert "".join(e["text_output"] for e in events) == "Vöx: " + words(cycle([8, 9], 20))
    assert events[0]["text_output"].startswith("Vöx: ")


def test_ids_without_text(server: Server) -> None:
    """A stop token behind the text and skipped special tokens add nothing, not even a separator."""
    answer = server.generate("ensemble", input_ids=[END_ID, 5, END_ID, 6, STOP_ID], return_finish_reason=True)
    assert (answer["text_output"], answer["finish_reason"]) == ("t5 t6", "stop")
    events = server.generate_stream("ensemble", input_ids=[END_ID, 5, END_ID, 6, STOP_ID], stream=True)
    assert "".join(e["text_output"] for e in events) == "t5 t6"
    shown = server.generate("ensemble", input_ids=[END_ID, 5, STOP_ID], skip_special_tokens=False)
    assert shown["text_output"] == "t0 t5"


def test_many_streams_at_once(server: Server) -> None:
    """Streams of many clients do not mix, whichever detokenizer instance they meet."""

    def one(i: int) -> tuple[str, str]:
        prompt = [1 + i, 2 + i, 3 + i]
        events = server.generate_stream("ensemble", input_ids=prompt, max_tokens=60 + i, stream=i % 3 > 0)
        return "".join(e["text_output"] for e in events), words(cycle(prompt, 60 + i))

    with ThreadPoolExecutor(64) as pool:
        for text, expected in pool.map(one, range(128)):
            assert text == expected


def test_detokenizer_decodes_plain_ids(server: Server) -> None:
    """Called directly with ids, the detokenizer uses the table of its generation model."""
    assert server.generate("detokenizer", output_ids=[3, END_ID, 4])["text_output"] == "t3 t4"


def test_requests_that_arrive_together_are_one_frame(server: Server) -> None:
    """A burst of requests does not cost one write each."""
    before = len(server.repository.events("frame"))
    with ThreadPoolExecutor(100) as pool:
        list(pool.map(lambda i: server.generate("generation", input_ids=[i], max_tokens=200), range(1, 101)))
    frames = server.repository.events("frame")[before:]
    assert sum(frame["additions"] for frame in frames) == 100
    assert len(frames) < 100


def test_metrics(server: Server) -> None:
    """The engine's figures are on the server's /metrics."""
    before = server.metrics()
    assert set(before) >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "quire:kv_blocks_total",
        "quire:kv_blocks_free",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "quire:engine_up",
        "quire:engine_restarts_total",
    }
    server.generate("ensemble", input_ids=[1], max_tokens=25)
    after = server.metrics()
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] == 25
    assert (after["quire:kv_blocks_total"], after["quire:kv_blocks_free"]) == (512, 512)
    assert after["vllm:num_requests_running"] == 0
