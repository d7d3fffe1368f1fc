"""What a batch says of penalties, biases and the like, and that a device that knows no more
than that samples from what plain numpy makes of the logits, with one batch in flight or more, resumed or
not."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pytest
from adjustments_buffers import packed_samples
from adjustments_reference import Fields
from core_helpers import Driver, FakeModel, Sequence, make_core, packed_tables
from quire import _core

VOCAB_SIZE = 256
IN_PROMPT = 0x8000
SMALL = list(range(97, 103))  # few ids, so that bad words come up


def update(core: _core.EngineCore, *ids: int) -> list[_core.Release]:
    return core.update(np.array(ids, dtype=np.int32)).releases


NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": [(3, 0.0)],
}


def test_without_such_fields_there_are_no_edits() -> None:
    """Neutral values, and min_p of a greedy request, ask for nothing."""
    core = make_core()
    core.add_request(1, [1, 2], _core.SamplingParams(**NEUTRAL))
    core.add_request(2, [1, 2], _core.SamplingParams(temperature=0, min_p=0.5))
    batch = core.schedule()
    assert batch.num_sampled == 2
    assert not batch.has_adjustments


def test_arrays() -> None:
    """Every field of every kind, beside requests that have none; rows are written once."""
    core = make_core()
    core.add_request(1, [1, 2], _core.SamplingParams())
    core.add_request(2, [3, 4, 3], _core.SamplingParams(presence_penalty=0.5, frequency_penalty=-1.5))
    core.add_request(3, [5], _core.SamplingParams(min_p=0.25, logit_bias=[(9, 1.5), (4, -2.0), (6, 0.0)]))
    core.add_request(4, [6, 7], _core.SamplingParams(allowed_token_ids=[0, 31]))
    core.add_request(5, [8], _core.SamplingParams(repetition_penalty=1.25, logit_bias=[(7, -100.0)]))
    batch = core.schedule()
    rows = batch.sample_rows.tolist()
    arrays = packed_samples(batch, 5) | packed_tables(batch)
    assert arrays["min_p"].tolist() == [0, 0, 0.25, 0, 0]
    assert arrays["repetition_penalty"].tolist() == [1, 1, 1, 1, 1.25]
    assert arrays["presence_penalty"].tolist() == [0, 0.5, 0, 0, 0]
    assert arrays["frequency_penalty"].tolist() == [0, -1.5, 0, 0, 0]
    assert arrays["bias_offsets"].tolist() == [0, 0, 0, 2, 2, 3]
    assert arrays["bias_ids"].tolist() == [4, 9, 7]
    assert arrays["biases"].tolist() == [-2, 1.5, -100]
    assert arrays["counted_rows"].tolist() == [rows[1], rows[4]]
    assert arrays["counted_offsets"].tolist() == [0, 3, 4]
    assert arrays["counted_prompt_lens"].tolist() == [3, 1]
    assert arrays["counted_token_ids"].tolist() == [3, 4, 3, 8]
    update(core, 10, 10, 10, 31, 10)
    batch = core.schedule()
    assert _core.BatchLayout.for_tables(batch).num_bytes == 0
    again = packed_samples(batch, 5)
    for name, array in again.items():
        assert array.tolist() == arrays[name].tolist()


def test_edits_end_with_their_request() -> None:
    """The batch after it has none."""
    core = make_core()
    core.add_request(1, [1], _core.SamplingParams(min_p=0.1, max_tokens=1))
    core.add_request(2, [2], _core.SamplingParams(max_tokens=3))
    assert core.schedule().has_adjustments
    update(core, 5, 5)
    assert not core.schedule().has_adjustments


def test_a_prompt_in_parts_is_written_with_its_first_sample() -> None:
    """Parts of a prompt sample nothing; the row has the whole prompt then."""
    core = make_core(max_num_batched_tokens=4)
    core.add_request(1, list(range(10)), _core.SamplingParams(presence_penalty=1.0))
    for _ in range(2):
        assert not core.schedule().has_adjustments
        update(core)
    assert core.schedule().counted_token_ids.tolist() == list(range(10))


def test_forgotten_rows_are_written_again() -> None:
    """With the ids that are known: what the failed batches sampled is not among them."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1, 2], _core.SamplingParams(presence_penalty=1.0))
    core.schedule()
    core.schedule()
    update(core, 7)
    core.schedule()
    core.forget_batches()
    adjustments = core.schedule()
    assert adjustments.counted_token_ids.tolist() == [1, 2, 7]
    assert adjustments.counted_prompt_lens.tolist() == [2]


@dataclass
class Adjusted:
    """A launched batch's adjustments, and whose samples they are."""

    arrays: dict[str, np.ndarray] | None  # of samples
    request_ids: list[int]
    rows: list[int]


class EditingModel(FakeModel):
    """Keeps the tables of the samplers as a device does, and knows of a request what batches say. Checks all
    of it against what the requests ask for at every sample."""

    def __init__(
        self, core: _core.EngineCore, sequences: dict[int, Sequence], fields: dict[int, Fields]
    ) -> None:
        super().__init__(core, sequences)
        self.fields = fields
        self.token_counts = np.full((self.max_num_seqs + 1, VOCAB_SIZE), 0x5555, dtype=np.uint16)
        self.adjustments: deque[Adjusted] = deque()

    def launch(self, batch: _core.Batch) -> None:
        super().launch(batch)
        arrays = packed_samples(batch, batch.num_sampled) if batch.has_adjustments else None
        request_ids = np.repeat(batch.request_ids, np.diff(batch.sample_offsets)).tolist()
        self.adjustments.append(Adjusted(arrays, request_ids, batch.sample_rows.tolist()))

    def write_tables(self, tables: dict[str, np.ndarray]) -> None:
        super().write_tables(tables)
        offsets = tables["counted_offsets"]  # none when no row is written
        for i, row in enumerate(tables["counted_rows"]):
            ids = tables["counted_token_ids"][offsets[i] : offsets[i + 1]]
            prompt, output = np.split(ids, [tables["counted_prompt_lens"][i]])
            self.token_counts[row] = np.bincount(output, minlength=VOCAB_SIZE)
            self.token_counts[row, prompt] |= IN_PROMPT

    def collect(self) -> np.ndarray:
        sampled = super().collect()
        self.adjustments.popleft()
        return sampled

    def discard(self, has_run: bool) -> None:
        if not has_run:
            self.adjustments.clear()
        super().discard(has_run)
        self.token_counts.fill(0x5555)

    def next_token(self, tokens: list[int], masked: Collection[int] = (), index: int = 0) -> int:
        """The largest of logits that all tokens decide, adjusted as the batch says."""
        adjusted, j = self.adjustments[0], self.sample_idx
        request_id, row, arrays = adjusted.request_ids[j], adjusted.rows[j], adjusted.arrays
        prompt = self.sequences[request_id].prompt
        output = tokens[len(prompt) :]
        own = self.fields[request_id]
        base = np.random.default_rng(super().next_token(tokens) + 1000 * len(tokens))
        logits = base.normal(size=VOCAB_SIZE).astype(np.float32)
        logits[SMALL] += 3
        expected = own.adjustment(logits, prompt, output)
        assert masked == own.masked(output, VOCAB_SIZE)
        if arrays is None:
            assert not own.changes_logits
            return int(expected.argmax())
        has_penalties = (own.presence_penalty, own.frequency_penalty, own.repetition_penalty) != (0, 0, 1)
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
            assert arrays[name][j] == np.float32(getattr(own, name))
        if has_penalties:
            counts = np.bincount(np.array(output, dtype=np.int64), minlength=VOCAB_SIZE).astype(np.uint16)
            counts[prompt] |= IN_PROMPT
            assert self.token_counts[row].tolist() == counts.tolist()
        part = slice(*arrays["bias_offsets"][j : j + 2])
        biases = dict(zip(arrays["bias_ids"][part].tolist(), arrays["biases"][part].tolist(), strict=True))
        assert biases == own.logit_bias
        assert list(biases) == sorted(biases)
        token = int(expected.argmax())
        assert token not in own.banned(output)
        if has_penalties:
            self.token_counts[row, token] += 1
        return token


class EditingDriver(Driver):
    def __init__(self, core: _core.EngineCore) -> None:
        super().__init__(core)
        self.fields: dict[int, Fields] = {}
        self.model = EditingModel(core, self.sequences, self.fields)

    def add_fields(self, request_id: int, prompt: list[int], fields: Fields, **params: object) -> None:
        self.fields[request_id] = fields
        given = vars(fields) | {"logit_bias": list(fields.logit_bias.items())}
        del given["end_ids"]
        self.add(request_id, prompt, **given, **params)


EOS_IDS = [97, 250]


def random_fields(rng: random.Random, min_tokens: int) -> Fields:
    def some(count: int) -> list[int]:
        return [rng.choice(SMALL) for _ in range(count)]

    return Fields(
        presence_penalty=rng.choice([0, 0, 0.75]),
        frequency_penalty=rng.choice([0, 0, 0.5]),
        repetition_penalty=rng.choice([1, 1, 1.5]),
        logit_bias=rng.choice([{}, {}, dict.fromkeys(sorted(set(some(3))), 1.5)]),
        allowed_token_ids=rng.choice([[], [], list(range(40, 140)), [*SMALL, 5, 200]]),
        bad_word_ids=rng.choice([[], [], [some(1)], [some(2), some(3), some(2), some(1)]]),
        min_tokens=min_tokens,
        end_ids=EOS_IDS,
    )


def run(seed: int, **settings: object) -> EditingDriver:
    rng = random.Random(seed)
    driver = EditingDriver(make_core(eos_token_ids=EOS_IDS, **settings))
    for request_id in range(24):
        min_tokens = rng.choice([0, 0, 5])
        is_plain = rng.random() < 0.3
        fields = (
            Fields(min_tokens=min_tokens, end_ids=EOS_IDS) if is_plain else random_fields(rng, min_tokens)
        )
        prompt = [rng.choice(SMALL) for _ in range(rng.randrange(1, 30))]
        driver.add_fields(
            request_id,
            prompt,
            fields,
            temperature=0.0,
            max_tokens=rng.choice([5, 20, 40]),
            ignore_eos=rng.random() < 0.5,
        )
        if rng.random() < 0.5:
            driver.step()
        if rng.random() < 0.05:
            driver.forget(rng.random() < 0.5)
    driver.run()
    return driver


SETTINGS = {
    "plain": {},
    "small chunks": {"max_num_batched_tokens": 5},
    "preemption": {"num_blocks": 32},
    "preemption in small chunks": {
        "num_blocks": 32,
        "max_num_batched_tokens": 9,
        "enable_prefix_caching": False,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_tables_hold_what_requests_are(name: str, seed: int) -> None:
    """At every sample the model finds what numpy says; ids are the same with three batches in flight as with
    one."""
    one = run(seed, **SETTINGS[name])
    two = run(seed, max_batches_in_flight=3, **SETTINGS[name])
    if "preemption" in name:
        assert min(one.core.stats().num_preemptions, two.core.stats().num_preemptions) > 0
    banned = 0
    for request_id, sequence in one.sequences.items():
        assert sequence.released == two.sequences[request_id].released
        assert sequence.finish_reason in ("stop", "length")
        own = one.fields[request_id]
        banned += any(own.banned(sequence.released[:i]) for i in range(len(sequence.released)))
    assert banned > 0
