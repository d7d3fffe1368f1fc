"""The core reads every field of a request from the frame that the wire's description says."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
import wire_client as wire
from field_cases import FIELD_CASES
from quire import _core
from quire.sampling_params import CORE_FIELDS, SamplingParams

VOCAB_SIZE = 8

# A value of each field that the core refuses.
BAD = {
    name: FIELD_CASES[name].bad[-1] for name in CORE_FIELDS if FIELD_CASES[name].bad and name != "bad_words"
}
BAD["logit_bias"] = ((1, 0.5), (99, 1.0))


@pytest.fixture(scope="module")
def answer() -> Any:
    """Sends one addition to a core of its own; the error that comes back."""

    def ask(params: SamplingParams, **rest: Any) -> str:
        ours, theirs = socket.socketpair()
        table = _core.TokenTable(_core.DecoderKind.JOINED, [b"a"] * VOCAB_SIZE, [0] * VOCAB_SIZE)
        config = _core.EngineConfig(num_blocks=8, max_model_len=64, vocab_size=VOCAB_SIZE)
        core = _core.EngineCore(config, table)
        server = _core.EngineServer(core, theirs.detach())
        client = wire.Client(ours)
        client.send(wire.requests([wire.addition(7, [1, 2], params, **rest)]))
        assert server.wait_for_work()
        core.take_outputs()
        server.publish()
        releases = client.read_step().releases
        ours.close()
        return releases[0].error if releases else ""

    return ask


@pytest.mark.parametrize("name", BAD)
def test_a_field_is_where_it_is_said_to_be(answer: Any, name: str) -> None:
    """A bad value, sent past the checks of Python, is refused as what it is."""
    params = SamplingParams(max_tokens=5)
    object.__setattr__(params, name, BAD[name])
    assert answer(params).startswith(f"{name}: got ")


def test_a_flag_is_where_it_is_said_to_be(answer: Any) -> None:
    """One that is wrong together with another field."""
    params = SamplingParams(stop=["x"], max_tokens=5)
    object.__setattr__(params, "detokenize", False)
    assert answer(params).startswith("stop: got stop strings with detokenize false; ")


def test_words_are_read_in_their_order(answer: Any) -> None:
    """Sequences of ids, behind which the next fields are found again."""
    params = SamplingParams(max_tokens=5)
    object.__setattr__(params, "logprobs", 23)
    assert answer(params, bad_word_ids=[[1], [2, 3]]).startswith("logprobs: got 23; ")
    params = SamplingParams(max_tokens=5)
    assert answer(params, bad_word_ids=[[1], [2, 96]]).startswith("bad_words: got 96; ")
    assert answer(params, bad_word_ids=[[1], []]).startswith("bad_words: got a sequence of no ids; ")


def test_what_is_fine_is_taken(answer: Any) -> None:
    """Every field at once."""
    params = SamplingParams(
        n=2,
        max_tokens=5,
        temperature=0.5,
        logit_bias={1: 0.5},
        allowed_token_ids=[1, 2],
        stop=["x"],
        stop_token_ids=[3],
        logprobs=2,
        prompt_logprobs=1,
        stream_interval=3,
        cache_salt="s",
        deadline_ms=60_000,
    )
    assert answer(params, bad_word_ids=[[1, 2]], arrival_ns=time.monotonic_ns(), tokenize_ns=3) == ""
