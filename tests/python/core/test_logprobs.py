"""Logprobs leave with exactly the ids that they belong to, whatever the schedule; why a request stopped."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from core_helpers import Driver, FakeModel, byte_table, make_core
from quire import _core

NUM_TOP = 20
Place = list[tuple[int, float, int]]


def expected_place(place: int, token: int, num_logprobs: int, vocab_size: int) -> Place:
    """What the fake model says of `token` as the sequence's token number `place`: exact in float32."""
    own = (token, -place - token / 512, 1 + (place + token) % 50)
    return [own] + [((token + j) % vocab_size, -place - j / 32, j) for j in range(1, num_logprobs + 1)]


def places_of(entries: np.ndarray) -> list[Place]:
    return [[entry for entry in place if entry[0] >= 0] for place in entries.tolist()]


@dataclass
class Asked:
    """The rows of a batch: (place of the token, how many likeliest ones)."""

    sampled: list[tuple[int, int]] | None
    prompt: list[tuple[int, int, int]]  # and the token


class LogprobModel(FakeModel):
    """Gives numbers that tell the place and the token; rubbish where nothing is asked for."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.asked: deque[Asked] = deque()

    def launch(self, batch: _core.Batch) -> None:
        super().launch(batch)
        places = batch.positions + 1
        sampled = zip(places[batch.sample_token_idx].tolist(), batch.num_logprobs.tolist(), strict=True)
        rows = (places[batch.prompt_token_idx], batch.prompt_num_logprobs, batch.prompt_next_ids)
        self.asked.append(
            Asked(
                list(sampled) if batch.has_logprobs else None,
                list(zip(*(row.tolist() for row in rows), strict=True)),
            )
        )

    def collect(self) -> tuple[object, ...]:  # type: ignore[override]
        ids = super().collect()
        asked = self.asked.popleft()
        sampled = None
        if asked.sampled is not None:
            assert any(num for _, num in asked.sampled)
            rows = zip(asked.sampled, ids.tolist(), strict=True)
            sampled = self.rows([(place, num, token) for (place, num), token in rows])
        return ids, sampled, self.rows(asked.prompt) if asked.prompt else None

    def discard(self, has_run: bool) -> None:
        super().discard(has_run)
        self.asked.clear()

    def rows(self, rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, ...]:
        count = len(rows)
        own, ranks = np.full(count, 99, np.float32), np.full(count, -7, np.int32)
        top_ids, top = np.full((count, NUM_TOP), -9, np.int32), np.full((count, NUM_TOP), 99, np.float32)
        for i, (place, num, token) in enumerate(rows):
            if num == 0:
                continue
            (_, own[i], ranks[i]), *likeliest = expected_place(place, token, num, self.vocab_size)
            for j, (top_id, logprob, _) in enumerate(likeliest):
                top_ids[i, j], top[i, j] = top_id, logprob
        return own, ranks, top_ids, top


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    places: list[Place] | None = None
    prompt_places: list[Place] | None = None
    cumulative: float | None = None
    stop_reason: str | int | None = None
    num_text_ids: int = 0


class LogprobDriver(Driver):
    """Checks every release as it comes."""

    def __init__(self, core: _core.EngineCore) -> None:
        super().__init__(core)
        self.model = LogprobModel(core, self.sequences)
        self.answers: dict[int, Answer] = {}

    def collect(self) -> None:
        if self.core.num_batches_in_flight():
            self.take(self.core.update(*self.model.collect()))  # type: ignore[arg-type]
            self.core.check_integrity()
        else:
            self.take(self.core.take_outputs())

    def take(self, outputs: _core.StepOutputs) -> None:
        super().take(outputs)
        for release in outputs.releases:
            answer = self.answers.setdefault(release.request_id, Answer())
            params = self.params[release.request_id]
            prompt = self.sequences[release.request_id].prompt
            first = len(prompt) + len(answer.ids)
            answer.ids += release.token_ids
            answer.num_text_ids += release.num_text_ids
            answer.stop_reason = release.stop_reason
            vocab_size = self.core.config.vocab_size
            if params.logprobs is None:
                assert release.logprobs is None
                assert release.cumulative_logprob is None
            else:
                places = places_of(release.logprobs)
                assert places == [
                    expected_place(first + i, token, params.logprobs, vocab_size)
                    for i, token in enumerate(release.token_ids)
                ]
                answer.places = (answer.places or []) + places
                total = sum(place[0][1] for place in answer.places)
                assert release.cumulative_logprob == pytest.approx(total, abs=1e-9)
            if release.prompt_logprobs is not None:
                assert answer.prompt_places is None, "they come once"
                assert params.prompt_logprobs is not None
                places = places_of(release.prompt_logprobs)
                assert places == [
                    expected_place(i, token, params.prompt_logprobs, vocab_size)
                    for i, token in enumerate(prompt)
                    if i > 0
                ]
                answer.prompt_places = places


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_logprobs_follow_their_ids(seed: int, max_batches_in_flight: int) -> None:
    """Chunks, shared prefixes, preemptions, stop strings that hold ids back, failures of the model and
    cancellations: each release has its ids' logprobs, the first one the whole prompt's."""
    generator = random.Random(seed)
    core = make_core(
        num_blocks=24,
        max_num_seqs=5,
        max_num_batched_tokens=generator.choice([7, 16, 64]),
        max_batches_in_flight=max_batches_in_flight,
        max_model_len=80,
    )
    driver = LogprobDriver(core)
    beginning = [generator.randrange(256) for _ in range(20)]
    cancelled = set()
    for request_id in range(30):
        prompt = beginning[: generator.choice([0, 9, 20])] + [
            generator.randrange(256) for _ in range(generator.choice([1, 2, 15]))
        ]
        driver.add(
            request_id,
            prompt,
            max_tokens=generator.randrange(1, 40),
            logprobs=generator.choice([None, 0, 1, 3, 20]),
            prompt_logprobs=generator.choice([None, None, 0, 2, 20]),
            stop=[chr(c) * k for c in range(97, 122) for k in (1, 3)] if generator.random() < 0.4 else [],
        )
        for _ in range(generator.randrange(4)):
            driver.step()
        if generator.random() < 0.1:
            driver.forget(has_run=generator.random() < 0.5)
        if generator.random() < 0.2:
            core.cancel(request_id)
            cancelled.add(request_id)
    driver.run()
    assert core.stats().num_preemptions > 0
    for request_id, answer in driver.answers.items():
        params = driver.params[request_id]
        assert answer.ids == driver.sequences[request_id].released
        if request_id not in cancelled:
            assert (params.logprobs is None) == (answer.places is None)
            assert (params.prompt_logprobs is None) == (answer.prompt_places is None)


def test_prompt_logprobs_do_not_read_the_prefix_cache() -> None:
    """Tokens found in the cache have no logits. What such a request computes is found by others."""
    driver = LogprobDriver(make_core())
    prompt = list(range(30))
    for request_id, num in enumerate([None, 5, None]):
        driver.add(request_id, prompt, max_tokens=2, prompt_logprobs=num)
        driver.run()
    assert [driver.sequences[i].num_cached_tokens for i in range(3)] == [0, 0, 28]
    assert driver.core.stats().prefix_cache_queries == 90 - 30 + 30


def test_batches_ask_for_nothing_unless_requests_do() -> None:
    """One request with logprobs among others: only its row asks, and only its batches."""
    driver = LogprobDriver(make_core())
    driver.add(0, [1, 2, 3], max_tokens=4)
    driver.add(1, [4, 5, 6], max_tokens=2, logprobs=0)
    batches = [
        (batch.has_logprobs, batch.num_logprobs.tolist()) for batch in (driver.step() for _ in range(3))
    ]
    assert batches == [(True, [0, 1]), (True, [0, 1]), (False, [0])]
    driver.run()


def test_update_needs_the_logprobs_that_the_batch_asks_for() -> None:
    """Else nothing changes."""
    core = make_core()
    core.add_request(0, [1, 2, 3], _core.SamplingParams(max_tokens=2, logprobs=2, prompt_logprobs=0))
    batch = core.schedule()
    ids = np.array([5], np.int32)
    with pytest.raises(_core.InvalidArgument, match="logprobs: got 0 rows; allowed: 1 rows"):
        core.update(ids)
    rows = (
        np.zeros(2, np.float32),
        np.zeros(2, np.int32),
        np.zeros((2, 20), np.int32),
        np.zeros((2, 20), np.float32),
    )
    with pytest.raises(_core.InvalidArgument, match="prompt_logprobs: got 0 rows; allowed: 2 rows"):
        core.update(ids, rows)
    assert batch.num_prompt_rows == 2
    assert batch.prompt_next_ids.tolist() == [2, 3]
    assert len(core.update(ids, rows, rows)) == 1


def test_a_prompt_of_one_token_has_none() -> None:
    """Nothing predicts a prompt's first token."""
    driver = LogprobDriver(make_core())
    driver.add(0, [7], max_tokens=1, prompt_logprobs=3)
    driver.run()
    assert driver.answers[0].prompt_places == []


@pytest.mark.parametrize(
    ("params", "ids", "reason", "stop_reason"),
    [
        ({}, [65, 10], "stop", None),  # an end-of-sequence token
        ({"stop_token_ids": [66]}, [65, 66], "stop", 66),
        ({"stop_token_ids": [66], "include_stop_str_in_output": True}, [65, 66], "stop", 66),
        ({"stop_token_ids": [10]}, [65, 10], "stop", None),
        ({"stop_token_ids": [10], "ignore_eos": True}, [65, 10], "stop", 10),
        ({"stop": ["AC", "AB"]}, [65, 66], "stop", "AB"),
        ({"stop": ["xx", "B", "AB"], "include_stop_str_in_output": True}, [65, 66], "stop", "AB"),
        ({"stop": ["é"]}, [65, 0xC3, 0xA9], "stop", "é"),
        ({"max_tokens": 2}, [65, 66], "length", None),
    ],
)
def test_stop_reason(
    params: dict[str, object], ids: list[int], reason: str, stop_reason: str | int | None
) -> None:
    """The stop string or stop token that ended a request; as in vLLM none at an end-of-sequence token."""
    core = make_core(eos_token_ids=[10])
    core.add_request(0, [1], _core.SamplingParams(**params))
    for token in ids:
        core.schedule()
        releases = core.update(np.array([token], np.int32)).releases
    assert (releases[-1].finish_reason, releases[-1].stop_reason) == (reason, stop_reason)


def test_ids_without_text_leave_at_once() -> None:
    """With detokenize false a part of a character is no reason to wait, and no id carries text."""
    core = make_core(byte_table(), eos_token_ids=[10])
    core.add_request(0, [1], _core.SamplingParams(detokenize=False, logprobs=0))
    model = LogprobModel(core, {})
    for token in [0xC3, 65, 10]:
        core.schedule()
        [release] = core.update(np.array([token], np.int32), model.rows([(1, 1, token)])).releases
        assert (release.token_ids, release.num_text_ids) == ([token], 0)
        assert places_of(release.logprobs) == [expected_place(1, token, 0, 256)]
    assert release.finish_reason == "stop"


@pytest.mark.parametrize(
    ("params", "reason", "stop_reason"),
    [
        ({"stop": ["B", "<|im_end|>"]}, "stop", "<|im_end|>"),
        ({"stop": ["<|im_end|>"], "include_stop_str_in_output": True}, "stop", "<|im_end|>"),
        ({"stop": ["<|im_end|>"], "skip_special_tokens": False}, "stop", "<|im_end|>"),
        ({"stop": ["<|im_end|>"], "stop_token_ids": [256]}, "stop", 256),
        ({"stop": ["<|im_end|>"], "min_tokens": 3}, "", None),
        ({"stop": ["<|eos|>"]}, "", None),
        ({"stop": ["<|im_end|"]}, "", None),
        ({}, "", None),
    ],
)
def test_stop_strings_that_are_special_tokens(
    params: dict[str, object], reason: str, stop_reason: str | int | None
) -> None:
    """A special token ends the request that has its text as a stop string, whether or not the text has it."""
    texts = [bytes([byte]) for byte in range(256)] + [b"<|im_end|>", b"<|eos|>"]
    flags = [0] * 256 + [_core.TOKEN_SPECIAL] * 2
    table = _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, texts, flags, "", _core.STRIP_NOTHING)
    core = make_core(table, vocab_size=258, eos_token_ids=[257])
    core.add_request(0, [1], _core.SamplingParams(**params))
    text = ""
    for token in (65, 256):
        core.schedule()
        releases = core.update(np.array([token], np.int32)).releases
        skip = bool(params.get("skip_special_tokens", True))
        text += "".join(
            table.decode(release.token_ids[: release.num_text_ids], release.is_first, release.trim, skip)
            for release in releases
        )
    assert (releases[-1].finish_reason, releases[-1].stop_reason) == (reason, stop_reason)
    assert text == "A"
    assert core.has_unfinished_requests() is (reason == "")
