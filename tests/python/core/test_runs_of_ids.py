"""A sample gives several ids in a row: requests have the ids that they have with one id a step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from core_helpers import Driver, FakeModel, Key, Sequence, id_and_index, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core
from test_logit_adjustments import EOS_IDS, EditingDriver, EditingModel, random_fields


class RunsModel(FakeModel):
    """Gives 1 to 4 ids a sample. What the core has to drop is any id; the sampler's counts after a run are
    worth nothing."""

    def __init__(
        self,
        core: _core.EngineCore,
        sequences: dict[Key, Sequence],
        num_ids: Callable[[], int],
        min_tokens: Callable[[Key], int],
    ) -> None:
        super().__init__(core, sequences)
        self.num_ids = num_ids
        self.min_tokens = min_tokens
        self.num_dropped = 0

    def is_mask_other(self, key: Key, output: list[int]) -> bool:
        return len(output) == self.min_tokens(key)

    def draw(self, key: Key, masked: set[int]) -> list[int]:
        sequence = self.sequences[key]
        run = super().draw(key, masked)
        num_ids = 1 if len(self.launched) else self.num_ids()
        while len(run) < num_ids and not self.is_mask_other(key, sequence.sampled):
            run += super().draw(key, masked)
        self.num_dropped += num_ids - len(run)
        return run + [7] * (num_ids - len(run))


def with_runs(core: _core.EngineCore, num_ids: Callable[[], int]) -> Driver:
    driver = Driver(core)
    driver.model = RunsModel(
        core, driver.sequences, num_ids, lambda key: driver.params[id_and_index(key)[0]].min_tokens
    )
    return driver


def answers(driver: Driver) -> dict[Key, tuple[list[int], bytes, str]]:
    return {key: (own.released, own.text, own.finish_reason) for key, own in driver.run().items()}


@settings(max_examples=examples(100))
@given(st.data())
def test_ids_are_those_of_one_a_step(data: st.DataObject) -> None:
    """With stop strings and stop ids inside of a run, min_tokens, n, chunks, preemption and cached prefixes:
    the same ids, text and end."""
    values = {
        "block_size": data.draw(st.integers(1, 5), "block_size"),
        "num_blocks": data.draw(st.integers(60, 130), "num_blocks"),
        "max_model_len": 60,
        "max_num_seqs": data.draw(st.integers(1, 6), "max_num_seqs"),
        "max_num_batched_tokens": data.draw(st.integers(1, 40), "max_num_batched_tokens"),
        "enable_prefix_caching": data.draw(st.booleans(), "enable_prefix_caching"),
        "eos_token_ids": list(range(8)),
    }
    seed = data.draw(st.integers(0, 2**31), "seed")
    rng = random.Random(seed)
    one, runs = Driver(make_core(**values)), with_runs(make_core(**values), lambda: rng.randint(1, 4))
    for request_id in range(data.draw(st.integers(1, 8), "num_requests")):
        prompt = data.draw(st.lists(st.integers(16, 255), min_size=1, max_size=25), "prompt")
        fields = {
            "max_tokens": data.draw(st.integers(10, 30), "max_tokens"),
            "min_tokens": data.draw(st.sampled_from([0, 0, 3, 10]), "min_tokens"),
            "n": data.draw(st.sampled_from([1, 1, 2, 3]), "n"),
            "stop": data.draw(st.sampled_from([[], ["a"], ["Q", "zz"], ["\n"]]), "stop"),
            "stop_token_ids": data.draw(st.sampled_from([[], [9, 30, 31, 32, 33]]), "stop_token_ids"),
            "stream_interval": data.draw(st.sampled_from([1, 3]), "stream_interval"),
        }
        for driver in (one, runs):
            driver.add(request_id, prompt, **fields)
    assert answers(one) == answers(runs)
    assert one.core.stats().num_generation_tokens == runs.core.stats().num_generation_tokens


class EditingRunsModel(RunsModel, EditingModel):
    """A RunsModel that checks penalties, biases and masks at every id."""

    def __init__(self, driver: EditingDriver, num_ids: Callable[[], int]) -> None:
        EditingModel.__init__(self, driver.core, driver.sequences, driver.fields)
        self.num_ids = num_ids
        self.num_dropped = 0

    def is_mask_other(self, key: Key, output: list[int]) -> bool:
        own = self.fields[key]
        changes = [self.is_almost_complete(word, output) for word in own.bad_word_ids if len(word) > 1]
        before = [self.is_almost_complete(word, output[:-1]) for word in own.bad_word_ids if len(word) > 1]
        return len(output) == own.min_tokens or changes != before

    @staticmethod
    def is_almost_complete(word: list[int], output: list[int]) -> bool:
        return output[max(len(output) - len(word) + 1, 0) :] == list(word[:-1])

    def draw(self, key: Key, masked: set[int]) -> list[int]:
        run = super().draw(key, masked)
        if len(run) > 1:
            self.token_counts[self.adjustments[0].rows[self.sample_idx]] = 0x5555
        return run


@pytest.mark.parametrize("num_blocks", [64, 32])
@pytest.mark.parametrize("seed", range(4))
def test_penalties_and_masks(seed: int, num_blocks: int) -> None:
    """Every id of a run is drawn as the request wants it, and the core takes none that its mask could have
    changed; tables that samplers keep are right after it."""

    def run(num_ids: Callable[[], int] | None) -> EditingDriver:
        rng = random.Random(seed)
        driver = EditingDriver(make_core(eos_token_ids=EOS_IDS, num_blocks=num_blocks))
        if num_ids:
            driver.model = EditingRunsModel(driver, num_ids)
        for request_id in range(24):
            fields = random_fields(rng, rng.choice([0, 0, 5]))
            prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 30))]
            params = {"temperature": 0.0, "max_tokens": rng.choice([5, 20, 40])}
            driver.add_fields(request_id, prompt, fields, **params, ignore_eos=rng.random() < 0.5)
        return driver

    lengths = random.Random(seed)
    one, runs = run(None), run(lambda: lengths.randint(1, 4))
    assert answers(one) == answers(runs)
    assert runs.model.num_dropped > 0
    if num_blocks == 32:
        assert runs.core.stats().num_preemptions > 0


def update(core: _core.EngineCore, ids: list[int], counts: Iterable[int]) -> list[_core.Release]:
    given = np.array(ids, dtype=np.int32), np.array(list(counts), dtype=np.int32)
    return core.update(given[0], counts=given[1]).releases


def test_a_run_ends_with_its_request() -> None:
    """At an end id, a stop string or max_tokens, whatever comes after it; one release carries the run."""
    core = make_core(eos_token_ids=[9])
    core.add_request(1, [1], _core.SamplingParams())
    core.add_request(2, [1], _core.SamplingParams(stop=["bc"]))
    core.add_request(3, [1], _core.SamplingParams(max_tokens=2))
    core.add_request(4, [1], _core.SamplingParams())
    core.schedule()
    releases = update(core, [97, 9, 5, 97, 98, 99, 100, 70, 71, 72, 65, 66, 67], [3, 4, 3, 3])
    assert [(release.token_ids, release.finish_reason) for release in releases] == [
        ([97, 9], "stop"),
        ([97, 98, 99], "stop"),
        ([70, 71], "length"),
        ([65, 66, 67], ""),
    ]
    assert core.stats().num_generation_tokens == 2 + 3 + 2 + 3
    batch = core.schedule()
    assert (batch.token_ids.tolist(), batch.positions.tolist()) == ([65, 66, 67], [1, 2, 3])
    assert (batch.output_idx.tolist(), batch.sample_token_idx.tolist()) == ([3], [2])


def test_a_row_that_is_not_finite_ends_the_run() -> None:
    """The first of a run ends the request; later ones, and what follows, are dropped."""
    core = make_core()
    core.add_request(1, [1], _core.SamplingParams())
    core.add_request(2, [1], _core.SamplingParams())
    core.schedule()
    first, second = update(core, [-1, 5, 65, -1, 66], [2, 3])
    assert (first.finish_reason, second.token_ids, second.finish_reason) == ("error", [65], "")
    core.check_integrity()


def test_runs_that_do_not_fit_are_refused() -> None:
    """Counts are one per sample, at least 1, and 1 while another batch is in flight; nothing changes then."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1], _core.SamplingParams())
    core.add_request(2, [1], _core.SamplingParams())
    core.schedule()
    for ids, counts, message in (
        ([5, 6], [2], "counts: got 1 counts; allowed: 2, the batch's num_sampled"),
        ([5, 6], [2, 0], "counts: got 0; allowed: at least 1"),
        ([5, 6, 7, 8], [2, 1], "sampled: got 4 ids; allowed: 3, the sum of counts"),
    ):
        with pytest.raises(_core.InvalidArgument, match=message):
            update(core, ids, counts)
    core.schedule()
    with pytest.raises(_core.InvalidArgument, match="counts: got 2; allowed: 1 while another"):
        update(core, [5, 6, 7], [1, 2])
    core.check_integrity()
    assert core.stats().num_generation_tokens == 0
    assert [release.token_ids for release in update(core, [5, 6], [1, 1])] == [[5], [6]]
    assert [release.token_ids for release in update(core, [5, 6, 7], [1, 2])] == [[5], [6, 7]]
    assert core.schedule().token_ids.tolist() == [5, 6, 7]
