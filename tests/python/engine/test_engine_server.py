"""EngineServer over a socketpair, with a runner that needs no model."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import wire_client as wire
from counting_engine import VOCAB_SIZE, CountingRunner, Engine
from quire import _core
from quire.engine.loop import serve
from quire.errors import EngineError
from quire.sampling_params import SamplingParams
from wire_format import DEFAULT_PARAMS


@pytest.fixture(params=[1, 2], ids=["one batch in flight", "two batches in flight"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(max_batches_in_flight=request.param)
    yield engine
    engine.runner.may_run.set()
    engine.server.stop()
    if engine.thread.ident:
        engine.join()
    engine.client.connection.close()


def test_ready(engine: Engine) -> None:
    """The first frame says the model, the limits, the defaults and the token table."""
    defaults = _core.SamplingParams(temperature=0.5, top_p=0.25, top_k=7, repetition_penalty=1.25)
    engine.server.send_ready("a model", defaults, "11 a", "the folder", {"block_size": "16"})
    kind, payload = engine.client.read_frame()
    assert kind == wire.READY
    ready = wire.decode_ready(payload)
    table = ready.pop("token_table")
    stats = ready.pop("stats")
    assert stats == dict.fromkeys(stats, 0) | {"num_blocks": 64, "num_free_blocks": 64}
    assert ready == {
        "model": "a model",
        "vocabulary": "11 a",
        "loaded": "the folder",
        "max_model_len": 128,
        "vocab_size": VOCAB_SIZE,
        "block_size": 16,
        "num_blocks": 64,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2304,
        "disable_log_stats": False,
        "cache_config": [{"name": "block_size", "value": "16"}],
        "defaults": DEFAULT_PARAMS
        | {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "repetition_penalty": 1.25},
    }
    assert _core.TokenTable.deserialize(table).decode([0, 1, 2]) == "ABC"


class GraphRunner(CountingRunner):
    """A runner whose steps are graphs."""

    num_graph_captures = 3

    @property
    def num_graph_replays(self) -> int:
        return self.num_steps


def test_add(engine: Engine) -> None:
    """A request is answered to its end, with the counts."""
    engine.start().client.add(7, [5] * 20, max_tokens=6)
    [answer] = engine.client.finish(7)
    assert answer.ids == [1, 2, 3, 4, 5, 6]
    assert answer.finish_reason == "length"
    stats = engine.client.steps[-1].stats
    assert (stats["num_running"], stats["num_waiting"]) == (0, 0)
    assert stats["num_free_blocks"] == stats["num_blocks"] == 64
    assert (stats["num_prompt_tokens"], stats["num_generation_tokens"]) == (20, 6)


def test_graphs_and_host_time_of_each_step(engine: Engine) -> None:
    """What the runner counts travels with the step that it counted, and each step has its host's time."""
    engine.runner = GraphRunner(engine.runner.max_batches_in_flight)
    engine.runner.may_run.set()
    engine.start().client.add(7, [5] * 20, max_tokens=6)
    engine.client.finish(7)
    last = engine.client.steps[-1].stats
    assert last["graph_captures"] == 3
    assert last["step"] <= last["graph_replays"] == engine.runner.num_steps
    series = [name for step in engine.client.steps for name in step.observed]
    assert series.count("quire:step_host_seconds") == last["step"]


def test_logprobs_beside_the_ids(engine: Engine) -> None:
    """Of each release its own; the prompt's with the first. Others have none."""
    engine.start().client.add(1, [5, 6, 7], max_tokens=3, logprobs=2, prompt_logprobs=0)
    engine.client.add(2, [5, 6, 7], max_tokens=3)
    engine.client.finish(1, 2)
    releases = [release for step in engine.client.steps for release in step.releases]
    mine = [release for release in releases if release.request_id == 1]
    assert [token for release in mine for token in release.ids] == [1, 2, 3]
    assert [place for release in mine for place in release.logprobs or []] == [
        [(token, -token / 256, 2), (99, -0.5, 1), (-1, float("-inf"), 2)] for token in (1, 2, 3)
    ]
    assert mine[-1].cumulative_logprob == -6 / 256
    assert mine[0].prompt_logprobs == [[(6, -6 / 256, 2)], [(7, -7 / 256, 2)]]
    assert all(release.prompt_logprobs is None for release in mine[1:])
    assert all(release.logprobs is None for release in releases if release.request_id == 2)


@pytest.mark.parametrize(
    ("params", "stop_reason"),
    [({"stop_token_ids": [3]}, 3), ({"stop": ["CD"]}, "CD"), ({"max_tokens": 2}, None)],
)
def test_stop_reason(engine: Engine, params: dict[str, Any], stop_reason: str | int | None) -> None:
    """The stop token's id, or the stop string: here token i is letter i of the alphabet."""
    engine.start().client.add(1, [5], **{"max_tokens": 9} | params)
    engine.client.finish(1)
    releases = [release for step in engine.client.steps for release in step.releases]
    assert [release.stop_reason for release in releases][-1] == stop_reason


def test_many_at_once(engine: Engine) -> None:
    """500 requests in one frame, thirty times what runs at once, and 500 frames of one: all answered."""
    engine.start()
    params = SamplingParams(max_tokens=5)
    engine.client.send(wire.requests([wire.addition(i, [1, 2, 3], params) for i in range(500)]))
    for i in range(500, 1000):
        engine.client.add(i, [1, 2, 3], max_tokens=5)
    answers = engine.client.finish(*range(1000))
    assert all(answer.ids == [1, 2, 3, 4, 5] for answer in answers)
    assert engine.client.steps[-1].stats["num_free_blocks"] == 64
    engine.server.stop()
    engine.join()
    engine.core.check_integrity()


def test_refused_request(engine: Engine) -> None:
    """What the core refuses ends with its message; the others in the frame are served."""
    good = SamplingParams(max_tokens=2)
    engine.start().client.send(
        wire.requests(
            [wire.addition(1, [], good), wire.addition(2, [VOCAB_SIZE], good), wire.addition(3, [9], good)]
        )
    )
    empty, outside, fine = engine.client.finish(1, 2, 3)
    assert empty.finish_reason == outside.finish_reason == "error"
    assert "prompt_ids: got no tokens; allowed: at least 1 token" in empty.error
    assert f"prompt_ids: got {VOCAB_SIZE}; allowed: 0 to {VOCAB_SIZE - 1}" in outside.error
    assert (fine.ids, fine.finish_reason) == ([1, 2], "length")


def test_cancel_while_running(engine: Engine) -> None:
    """A cancelled request ends, its blocks are free, and the others go on."""
    engine.runner.may_run.clear()
    engine.runner.step_seconds = 0.01
    engine.start().client.add(1, [1] * 40, max_tokens=60)
    engine.client.add(2, [2] * 40, max_tokens=4)
    engine.client.cancel(1)
    engine.runner.may_run.set()
    cancelled, other = engine.client.finish(1, 2)
    assert cancelled.finish_reason == "cancelled"
    assert len(cancelled.ids) < 60
    assert (other.ids, other.finish_reason) == ([1, 2, 3, 4], "length")
    assert engine.client.steps[-1].stats["num_free_blocks"] == 64


def test_cancel_of_the_only_request_reports_counters(engine: Engine) -> None:
    """Nothing runs any more after the cancellation, and the client still hears the end and the freed
    blocks."""
    engine.start().client.add(1, [1] * 40, max_tokens=80)
    while not engine.client.answers:
        engine.client.read_step()
    engine.client.cancel(1)
    [answer] = engine.client.finish(1)
    assert answer.finish_reason in ("cancelled", "length")
    stats = engine.client.steps[-1].stats
    assert (stats["num_running"], stats["num_free_blocks"]) == (0, 64)


def test_cancel_of_an_unknown_request(engine: Engine) -> None:
    """Its end may just have crossed the cancellation: no error, and the next request is served."""
    engine.start().client.cancel(99)
    engine.client.add(1, [1], max_tokens=1)
    assert engine.client.finish(1)[0].ids == [1]
    assert list(engine.client.answers) == [1]


def test_addition_and_cancellation_in_one_frame(engine: Engine) -> None:
    """The addition comes first."""
    added = wire.addition(1, [1] * 20, SamplingParams(max_tokens=50))
    engine.start().client.send(wire.requests([added], [1]))
    [answer] = engine.client.finish(1)
    assert (answer.ids, answer.finish_reason) == ([], "cancelled")
    assert engine.runner.num_steps == 0


def test_disconnect_ends_the_loop(engine: Engine) -> None:
    """Idle or not, the loop ends without an error when the client is gone."""
    engine.start().client.connection.close()
    engine.join()
    assert engine.error is None


def test_disconnect_while_running(engine: Engine) -> None:
    """With requests running and output that nobody reads."""
    engine.runner.may_run.clear()
    engine.runner.step_seconds = 0.01
    engine.start()
    for i in range(8):
        engine.client.add(i, [1] * 10, max_tokens=100)
    engine.client.connection.close()
    engine.runner.may_run.set()
    engine.join()
    assert engine.error is None
    assert engine.runner.num_steps < 100


def test_stop(engine: Engine) -> None:
    """stop() wakes an idle loop."""
    engine.start()
    engine.server.stop()
    engine.join()
    assert engine.error is None


BAD_FRAMES = {
    "magic": (wire.frame(wire.REQUESTS, b"", magic=b"HTTP"), "not a Quire frame"),
    "version": (
        wire.frame(wire.REQUESTS, b"", version=9),
        "the other side speaks version 9, this side version 7",
    ),
    "unknown type": (wire.frame(77, b""), "unknown frame type 77"),
    "type of the other direction": (
        wire.frame(wire.STEP, b""),
        "frame type: got 4; allowed from a client: 1",
    ),
    "short payload": (wire.frame(wire.REQUESTS, b"\1\0"), "payload ends early"),
    "count without elements": (wire.frame(wire.REQUESTS, b"\xff\xff\xff\xff"), "does not fit"),
    "trailing bytes": (wire.requests() + wire.frame(wire.REQUESTS, b"\0" * 9), "1 bytes too many"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_malformed_frame(engine: Engine, name: str) -> None:
    """The connection is closed, and the loop ends with an error that says what was wrong."""
    data, message = BAD_FRAMES[name]
    engine.start().client.send(data)
    engine.join()
    assert isinstance(engine.error, RuntimeError)
    assert message in str(engine.error)
    # The good frame before the bad one may have been answered.
    assert name == "trailing bytes" or engine.client.read_rest() == b""


def test_frame_in_pieces(engine: Engine) -> None:
    """A frame may arrive byte by byte."""
    engine.start()
    for byte in wire.requests([wire.addition(1, [1, 2], SamplingParams(max_tokens=2))]):
        engine.client.send(bytes([byte]))
    assert engine.client.finish(1)[0].ids == [1, 2]


def test_slow_reader_does_not_stop_steps(engine: Engine) -> None:
    """Steps go on while the client reads nothing; what it missed arrives whole and in order."""
    engine.client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    engine.start()
    for i in range(64):
        engine.client.add(i, [1, 2, 3], max_tokens=100)
    deadline = time.monotonic() + 60
    while engine.runner.num_steps < 400 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.runner.num_steps >= 400, "64 requests of 100 tokens, 16 at once"
    answers = engine.client.finish(*range(64))
    assert all(answer.ids == list(range(1, 101)) for answer in answers)


def test_idle_engine_sleeps(engine: Engine) -> None:
    """Waiting costs no processor time."""
    engine.start().client.add(1, [1], max_tokens=1)
    engine.client.finish(1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.1


def test_close_sends_what_was_published() -> None:
    """Output published just before the end is not lost, even when the socket's buffer was full."""
    engine = Engine()
    engine.client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    engine.start()
    for i in range(64):
        engine.client.add(i, [1, 2, 3], max_tokens=100)
    while engine.runner.num_sampled < 64 * 100 or engine.core.has_unfinished_requests():
        time.sleep(0.01)
    engine.server.stop()
    engine.join()
    closing = threading.Thread(target=engine.__dict__.pop, args=("server",))  # the last reference
    closing.start()
    answers = engine.client.finish(*range(64))
    closing.join(60)
    engine.client.connection.close()
    assert all(answer.finish_reason == "length" for answer in answers)


@pytest.mark.parametrize("call", ["launch", "collect"])
def test_failing_step_ends_the_loop(engine: Engine, call: str) -> None:
    """An exception in the model is the engine's end, not one request's."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    setattr(engine.runner, call, fail)
    engine.start().client.add(1, [1], max_tokens=1)
    engine.join()
    assert isinstance(engine.error, ZeroDivisionError)


def test_no_progress_is_an_error() -> None:
    """A core that has requests and schedules nothing would make the loop spin."""

    class Stuck:
        def schedule(self) -> object:
            return type("Batch", (), {"num_tokens": 0})

        def num_batches_in_flight(self) -> int:
            return 0

        def take_outputs(self) -> None: ...

        def has_unfinished_requests(self) -> bool:
            return True

    class Server:
        def wait_for_work(self) -> bool:
            return True

    with pytest.raises(EngineError, match="nothing to run"):
        serve(Server(), Stuck(), CountingRunner())  # type: ignore[arg-type]
