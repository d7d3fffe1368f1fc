"""Which tokens each sample may give: what a device that keeps the table of masks finds in its rows, and how
little is written to it."""

from __future__ import annotations

import numpy as np
from core_helpers import make_core, masked_ids, write_masks
from quire import _core

VOCAB_SIZE = 256
NUM_WORDS = VOCAB_SIZE // 32


def update(core: _core.EngineCore, *ids: int) -> list[_core.Release]:
    return core.update(np.array(ids, dtype=np.int32)).releases


class Device:
    """Keeps the table, and nothing else."""

    def __init__(self, core: _core.EngineCore) -> None:
        self.table = np.full((core.config.max_num_seqs, NUM_WORDS), 0x55555555, dtype=np.uint32)

    def masked(self, batch: _core.Batch) -> list[set[int]]:
        """The ids that each sample of the batch may not give."""
        write_masks(self.table, batch.mask_updates)
        return [masked_ids(self.table[row]) if row >= 0 else set() for row in batch.mask_rows]


def all_but(*ids: int) -> set[int]:
    return set(range(VOCAB_SIZE)) - set(ids)


def test_sources_are_one_mask() -> None:
    """allowed_token_ids, bad words and the ids that min_tokens holds back leave what all of them leave; a
    request that asks for none of them has no row, and one whose mask stays writes it once."""
    core = make_core(eos_token_ids=[9])
    core.add_request(1, [1], _core.SamplingParams(allowed_token_ids=[0, 31, 32, 255, 31]))
    core.add_request(2, [1], _core.SamplingParams())
    core.add_request(3, [1], _core.SamplingParams(bad_word_ids=[[9], [7], [9]], logit_bias=[(9, 5.0)]))
    everything = {"allowed_token_ids": [5, 6, 9, 40], "bad_word_ids": [[5]], "stop_token_ids": [40]}
    core.add_request(4, [1], _core.SamplingParams(min_tokens=1, **everything))
    device = Device(core)
    batch = core.schedule()
    assert batch.has_masks
    assert batch.mask_rows.tolist() == [0, -1, 2, 3]
    assert len(batch.mask_updates) == 3 * NUM_WORDS
    assert device.masked(batch) == [all_but(0, 31, 32, 255), set(), {7, 9}, all_but(6)]
    update(core, 31, 9, 8, 6)
    batch = core.schedule()
    assert device.masked(batch) == [all_but(0, 31, 32, 255), {7, 9}, all_but(6, 9, 40)]
    assert len(batch.mask_updates) == 2, "the words of 9 and 40"
    update(core, 31, 8, 6)
    assert len(core.schedule().mask_updates) == 0


def test_no_mask_no_row() -> None:
    """A request has no row while its mask leaves every token: after min_tokens, and where no bad word is
    almost complete."""
    core = make_core(eos_token_ids=[9])
    core.add_request(1, [1], _core.SamplingParams(min_tokens=1))
    core.add_request(2, [1], _core.SamplingParams(bad_word_ids=[[2, 3]]))
    device = Device(core)
    for ids, masked in [((1, 1), [{9}, set()]), ((1, 2), [set(), set()]), ((1, 2), [set(), {3}])]:
        batch = core.schedule()
        assert device.masked(batch) == masked
        assert batch.mask_rows.tolist() == [i if masked[i] else -1 for i in range(2)]
        update(core, *ids)
    core = make_core(eos_token_ids=[9])
    core.add_request(1, [1], _core.SamplingParams(ignore_eos=True, bad_word_ids=[]))
    batch = core.schedule()
    assert not batch.has_masks
    assert batch.mask_rows.tolist() == [-1]


def test_as_many_end_ids_as_there_may_be() -> None:
    """min_tokens holds back every stop id and every end-of-sequence id, in every request of the batch."""
    core = make_core(vocab_size=VOCAB_SIZE, eos_token_ids=list(range(239, 255)), max_num_seqs=3)
    for request_id in range(3):
        params = _core.SamplingParams(min_tokens=1, stop_token_ids=list(range(240)))
        core.add_request(request_id, [1], params)
    assert Device(core).masked(core.schedule()) == [all_but(255)] * 3


def test_a_row_that_goes_to_another_request() -> None:
    """The next owner of a row writes what differs from what the row holds."""
    core = make_core(max_num_seqs=1)
    device = Device(core)
    masks = [{"bad_word_ids": [[7]]}, {"bad_word_ids": [[8]]}, {}, {"bad_word_ids": [[8]]}]
    expected = [({7}, NUM_WORDS), ({8}, 1), (set(), 0), ({8}, 0)]
    for request_id, (params, (masked, num_words)) in enumerate(zip(masks, expected, strict=True)):
        core.add_request(request_id, [1], _core.SamplingParams(max_tokens=1, **params))
        batch = core.schedule()
        assert device.masked(batch) == [masked]
        assert len(batch.mask_updates) == num_words
        update(core, 3)


def test_forgotten_rows_are_written_whole() -> None:
    """Nobody knows what a device holds that failed."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1, 2], _core.SamplingParams(allowed_token_ids=[7]))
    core.schedule()
    core.schedule()
    update(core, 7)
    core.schedule()
    core.forget_batches()
    batch = core.schedule()
    assert len(batch.mask_updates) == NUM_WORDS
    assert Device(core).masked(batch) == [all_but(7)]


def test_min_tokens_is_known_in_advance() -> None:
    """With two batches in flight the mask ends at its place, whose ids nobody knows yet."""
    core = make_core(max_batches_in_flight=2, eos_token_ids=[9])
    core.add_request(1, [1], _core.SamplingParams(min_tokens=2))
    device = Device(core)
    assert device.masked(core.schedule()) == [{9}]
    for masked in ({9}, set(), set()):
        assert device.masked(core.schedule()) == [masked]
        update(core, 1)


def test_bad_words_of_several_ids() -> None:
    """The last id of each word that the output has almost completed, and of no other, is masked; the prompt's
    ids do not count."""
    core = make_core()
    words = [[1, 2, 3], [2, 5], [4, 4], [3], [2, 7], [1, 9]]
    core.add_request(1, [1, 4], _core.SamplingParams(bad_word_ids=words, logit_bias=[(5, 2.0)]))
    device = Device(core)
    for token, masked in [(1, {3}), (2, {3, 9}), (4, {3, 5, 7}), (6, {3, 4}), (0, {3})]:
        batch = core.schedule()
        assert device.masked(batch) == [masked]
        assert batch.biases.tolist() == [2.0]
        update(core, token)


def test_bad_words_wait_for_ids() -> None:
    """A request with words of several ids is in every other batch; one with words of one id in all."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1], _core.SamplingParams(bad_word_ids=[[2, 3]]))
    core.add_request(2, [1], _core.SamplingParams(bad_word_ids=[[2], [3]]))
    assert core.schedule().request_ids.tolist() == [1, 2]
    for _ in range(3):
        assert core.schedule().request_ids.tolist() == [2]
        update(core, 9, 9)
        assert core.schedule().request_ids.tolist() == [1, 2]
        update(core, 9)


def test_alone_they_run_one_batch_at_a_time() -> None:
    """Nothing else is scheduled, and nothing hangs."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1], _core.SamplingParams(bad_word_ids=[[2, 3]], max_tokens=4))
    for _ in range(4):
        assert core.schedule().num_tokens == 1
        assert core.schedule().num_tokens == 0
        update(core, 2)
    assert not core.has_unfinished_requests()


def test_no_token_left() -> None:
    """The error says what may have left none."""
    core = make_core()
    core.add_request(1, [1], _core.SamplingParams(allowed_token_ids=[5], bad_word_ids=[[5, 5]]))
    core.add_request(2, [1], _core.SamplingParams(presence_penalty=1.0))
    core.schedule()
    first, second = update(core, -1, -1)
    assert "allowed_token_ids, bad_words and min_tokens leave none" in first.error
    assert second.error == "the model's logits are not finite; no token can be sampled"
