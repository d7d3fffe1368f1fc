"""n > 1: one request, n streams; every id once, in order, with its index."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from backend_server import Server, wait_for
from fake_engine import ERROR_ID, STALL_ID, STOP_ID
from test_answers import cycle, grpc_stream, words

FLAGS = dict.fromkeys(("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"), True)
# The fake engine's sequence i begins at the prompt's id i.
PROMPT = [5, 6, 7, 8, 9, 10, 11]


def answer(index: int, num_tokens: int) -> str:
    return words(cycle(PROMPT[index:] + PROMPT[:index], num_tokens))


@pytest.mark.parametrize("acknowledge", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 80])
def test_stream(server: Server, num_tokens: int, acknowledge: bool) -> None:
    """Each event is of one sequence and says of which; those of one joined are its text; each ends once."""
    events = server.generate_stream(
        "ensemble",
        input_ids=PROMPT,
        n=5,
        max_tokens=num_tokens,
        stream=True,
        acknowledge=acknowledge,
        prompt_text="> ",
        **FLAGS,
    )
    for index in range(5):
        mine = [event for event in events if event["index"] == index]
        assert "".join(e["text_output"] for e in mine) == "> " + answer(index, num_tokens)
        assert [e["finish_reason"] for e in mine] == ["None"] * (len(mine) - 1) + ["length"]
        assert sum(e["num_output_tokens"] for e in mine) == num_tokens
        assert {e["num_input_tokens"] for e in mine} == {7}


def test_without_stream(server: Server) -> None:
    """One response with all of them, in order, although they end at different times."""
    got = server.generate("ensemble", input_ids=[5, 6, STOP_ID], n=3, max_tokens=50, **FLAGS)
    assert got["text_output"] == ["t5 t6", "t6", ""]
    assert got["finish_reason"] == ["stop"] * 3
    assert got["num_output_tokens"] == [3, 2, 1]
    assert got["num_input_tokens"] == 3
    assert "index" not in got


def test_one_sequence_has_no_index(server: Server) -> None:
    """Answers to n = 1 are as without n."""
    (event,) = server.generate_stream("ensemble", input_ids=[5], n=1, max_tokens=1, stream=True)
    assert event["text_output"] == "t5"
    assert "index" not in event


@pytest.mark.parametrize("stream", [True, False])
def test_grpc(server: Server, stream: bool) -> None:
    """The final flag comes once, with the last response of all; ids that are called for directly are told
    apart by their counts."""
    fields = {"input_ids": [5, 6, 7, STOP_ID], "n": 4, "max_tokens": 30, "stream": stream}
    results = grpc_stream(
        server, "generation", ["output_ids", "index", "num_output_tokens", "finish_reason"], **fields
    )
    assert len(results) == 1 or stream
    ids: list[list[int]] = [[], [], [], []]
    ends = []
    for result in results:
        rest = result.as_numpy("output_ids").tolist()
        for index, count, reason in zip(
            result.as_numpy("index"),
            result.as_numpy("num_output_tokens"),
            result.as_numpy("finish_reason"),
            strict=True,
        ):
            ids[index] += rest[:count]
            rest = rest[count:]
            ends += [int(index)] if reason else []
        assert not rest
    assert ids == [[5, 6, 7, STOP_ID], [6, 7, STOP_ID], [7, STOP_ID], [STOP_ID]]
    assert sorted(ends) == [0, 1, 2, 3]


def test_many_at_once(server: Server) -> None:
    """Streams of many clients and their sequences do not mix."""

    def one(i: int) -> bool:
        events = server.generate_stream(
            "ensemble", input_ids=PROMPT, n=1 + i % 7, max_tokens=20 + i, stream=i % 3 > 0
        )
        if i % 3 == 0 or i % 7 == 0:
            texts = events[0]["text_output"] if i % 7 and len(events) == 1 else None
            joined = texts or ["".join(e["text_output"] for e in events)]
        else:
            joined = ["".join(e["text_output"] for e in events if e["index"] == k) for k in range(1 + i % 7)]
        return joined == [answer(k, 20 + i) for k in range(1 + i % 7)]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(64)))


def test_refusals(server: Server) -> None:
    """A request that is refused ends once, whatever n; greedy sequences are refused with the reason."""
    status, error = server.generate_error("ensemble", input_ids=[ERROR_ID], n=3)
    assert "input_ids: got id 901" in error
    status, error = server.generate_error("ensemble", input_ids=[5], n=3, temperature=0.0)
    assert status == 400
    assert "n: got 3 with temperature 0; allowed: 1 (greedy: all sequences would be the same)" in error
    status, error = server.generate_error("ensemble", input_ids=[5], n=129)
    assert "n: got 129; allowed: an integer in [1, 128]" in error


def test_a_client_that_goes_away_ends_all(server: Server) -> None:
    """One cancellation for the engine, which ends every sequence."""
    connection = server.connect()
    prompt = [5, 6, 7, STALL_ID]
    connection.request(
        "POST",
        "/v2/models/ensemble/generate_stream",
        f'{{"input_ids": {prompt}, "n": 3, "max_tokens": 30, "stream": true}}',
    )
    connection.getresponse().read(1)
    connection.close()
    (added,) = server.repository.events("add", prompt=prompt)
    wait_for(lambda: len(server.repository.events("cancel", request_id=added["request_id"])) == 3)
