"""BlockPool and BlockManager against naive models, under random operations."""

from __future__ import annotations

import random

import _core_parts
import pytest
from examples import examples
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quire import _core

Hash = tuple[int, int]


class PoolMachine(RuleBasedStateMachine):
    """The model: reference counts, and the free list as a Python list in the order of taking."""

    @initialize(num_blocks=st.integers(1, 9))
    def start(self, num_blocks: int) -> None:
        self.pool = _core_parts.BlockPool(num_blocks)
        self.refs = [0] * num_blocks
        self.free = list(range(num_blocks))
        self.hashes: dict[int, Hash] = {}

    def held(self) -> list[int]:
        return [i for i, count in enumerate(self.refs) if count]

    @rule()
    def allocate(self) -> None:
        block_id = self.pool.allocate()
        assert block_id == (self.free[0] if self.free else None)
        if block_id is not None:
            self.free.pop(0)
            self.hashes.pop(block_id, None)
            self.refs[block_id] = 1

    # Few low halves and few buckets, so that hashes meet in the table and entries move when one is removed.
    @precondition(lambda self: self.held())
    @rule(data=st.data(), low=st.sampled_from([0, 1, 2, 64, 128, 2**63]), high=st.integers(0, 1))
    def publish(self, data: st.DataObject, low: int, high: int) -> None:
        block_id = data.draw(st.sampled_from(self.held()))
        is_taken = (low, high) in self.hashes.values()
        expected = not is_taken if block_id not in self.hashes else self.hashes[block_id] == (low, high)
        assert self.pool.publish(block_id, (low, high)) == expected
        if expected:
            self.hashes[block_id] = (low, high)

    @precondition(lambda self: self.hashes)
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.hashes)))
        self.pool.acquire(block_id)
        if self.refs[block_id] == 0:
            self.free.remove(block_id)
        self.refs[block_id] += 1

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(self.held()))
        self.pool.release(block_id)
        self.refs[block_id] -= 1
        if self.refs[block_id] == 0:
            self.free.insert(len(self.free) if block_id in self.hashes else 0, block_id)

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_free == len(self.free)
        assert self.pool.num_cached == len(self.hashes)
        assert [self.pool.ref_count(i) for i in range(self.pool.num_blocks)] == self.refs
        owners = {hash_: block_id for block_id, hash_ in self.hashes.items()}
        for low in (0, 1, 2, 64, 128, 2**63):
            for high in (0, 1):
                assert self.pool.find((low, high)) == owners.get((low, high))


class ManagerMachine(RuleBasedStateMachine):
    """The model: each row's tokens, and for each block the tokens whose KV it holds, prefix included."""

    BLOCK_SIZE = 3
    MAX_BLOCKS = 6

    @initialize(
        num_blocks=st.integers(1, 16), num_rows=st.integers(1, 4), window=st.sampled_from([0, 1, 4, 9])
    )
    def start(self, num_blocks: int, num_rows: int, window: int) -> None:
        self.num_rows = num_rows
        self.window = window
        self.null_block = 0 if window else None  # the first that is taken
        self.dropped: dict[int, int] = {}
        self.manager = _core_parts.BlockManager(
            num_blocks, self.BLOCK_SIZE, num_rows, self.MAX_BLOCKS, window
        )
        self.rows: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.contents: dict[int, tuple[int, ...]] = {}  # block id -> all tokens up to its end, once published

    def hashes(self, tokens: list[int], count: int) -> list[Hash]:
        parent, result = _core_parts.root_hash(0), []
        for i in range(count):
            parent = _core_parts.hash_block(parent, tokens[i * self.BLOCK_SIZE : (i + 1) * self.BLOCK_SIZE])
            result.append(parent)
        return result

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.BLOCK_SIZE)

    @precondition(lambda self: len(self.rows) < self.num_rows)
    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=18), spare=st.integers(0, 2))
    def open(self, tokens: list[int], spare: int) -> None:
        pool = self.manager.pool
        free_before = pool.num_free
        hashes = self.hashes(tokens, (len(tokens) - 1) // self.BLOCK_SIZE)
        cached = [pool.find(hash_) for hash_ in hashes]
        for i, block_id in enumerate(cached):
            if block_id is not None:
                assert self.contents[block_id] == tuple(tokens[: (i + 1) * self.BLOCK_SIZE])
        # The longest of which the next token finds all that it sees.
        length = max(
            count
            for count in range(len(cached) + 1)
            if None not in cached[min(self.unseen(count * self.BLOCK_SIZE), max(0, count - 1)) : count]
        )
        dropped = self.unseen(length * self.BLOCK_SIZE)
        found = [*[self.null_block] * dropped, *cached[dropped:length]]
        shared = sum(pool.ref_count(block_id) > 0 for block_id in cached[dropped:length])
        needed = self.blocks_for(len(tokens)) - dropped - shared
        opened = self.manager.open(hashes, len(tokens), spare)
        if needed + spare > free_before:
            assert opened is None
            assert pool.num_free == free_before
            return
        assert opened is not None
        row, num_cached = opened
        assert row not in self.rows
        assert self.manager.blocks(row)[:num_cached] == found
        assert pool.num_free == free_before - needed
        self.rows[row] = list(tokens)
        self.dropped[row] = dropped
        self.computed[row] = num_cached * self.BLOCK_SIZE

    @precondition(lambda self: 0 < len(self.rows) < self.num_rows)
    @rule(data=st.data(), spare=st.integers(0, 2))
    def fork(self, data: st.DataObject, spare: int) -> None:
        source = data.draw(st.sampled_from(sorted(self.rows)))
        num_tokens = data.draw(st.integers(0, self.computed[source]))
        reaches_back = self.dropped[source] <= self.unseen(num_tokens)
        assert self.manager.reaches_back(source, num_tokens) == reaches_back
        if not reaches_back:
            return
        free_before = self.manager.pool.num_free
        num_shared, rest = divmod(num_tokens, self.BLOCK_SIZE)
        forked = self.manager.fork(source, num_tokens, spare)
        if (rest > 0) + spare > free_before:
            assert forked is None
            assert self.manager.pool.num_free == free_before
            return
        assert forked is not None
        row, source_block, own_block = forked
        assert row not in self.rows
        theirs, blocks = self.manager.blocks(source), self.manager.blocks(row)
        assert blocks[:num_shared] == theirs[:num_shared]
        assert blocks[num_shared:] == ([own_block] if rest else [])
        assert (source_block, own_block) == ((theirs[num_shared], blocks[num_shared]) if rest else (-1, -1))
        assert own_block not in theirs
        assert self.manager.pool.num_free == free_before - (rest > 0)
        self.rows[row] = self.rows[source][:num_tokens]
        self.dropped[row] = self.dropped[source]
        self.computed[row] = num_tokens

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def extend(self, data: st.DataObject, more: list[int]) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        tokens = (self.rows[row] + more)[: self.MAX_BLOCKS * self.BLOCK_SIZE]
        free_before = self.manager.pool.num_free
        needed = self.blocks_for(len(tokens)) - self.blocks_for(len(self.rows[row]))
        assert self.manager.extend(row, len(tokens)) == (needed <= free_before)
        if needed <= free_before:
            self.rows[row] = tokens
        assert self.manager.pool.num_free == free_before - (needed if needed <= free_before else 0)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """The row's tokens are computed, some or all; what is full is published."""
        row = data.draw(st.sampled_from(sorted(self.rows)))
        tokens = self.rows[row]
        done = data.draw(st.integers(self.computed[row], len(tokens)))
        hashes = self.hashes(tokens, done // self.BLOCK_SIZE)
        for i in range(self.computed[row] // self.BLOCK_SIZE, done // self.BLOCK_SIZE):
            self.manager.publish(row, i, hashes[i])
            self.contents[self.manager.blocks(row)[i]] = tuple(tokens[: (i + 1) * self.BLOCK_SIZE])
        self.computed[row] = done

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave_behind(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        self.manager.leave_behind(row, self.computed[row])
        self.dropped[row] = max(self.dropped[row], self.unseen(self.computed[row]))

    def unseen(self, position: int) -> int:
        """Leading blocks that the token at `position` does not see."""
        return max(0, position + 1 - self.window) // self.BLOCK_SIZE if self.window else 0

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.rows)))
        self.manager.close(row)
        del self.rows[row], self.computed[row], self.dropped[row]

    @invariant()
    def agrees(self) -> None:
        self.manager.check_integrity()
        pool = self.manager.pool
        counts = [0] * pool.num_blocks
        if self.null_block is not None:
            counts[self.null_block] = 1
        for row, tokens in self.rows.items():
            blocks = self.manager.blocks(row)
            assert len(blocks) == self.blocks_for(len(tokens))
            dropped = self.dropped[row]
            assert blocks[:dropped] == [self.null_block] * dropped
            for block_id in blocks[dropped:]:
                counts[block_id] += 1
            for position in range(len(tokens)):
                block_id = blocks[position // self.BLOCK_SIZE]
                slot = block_id * self.BLOCK_SIZE + position % self.BLOCK_SIZE
                assert self.manager.slot(row, position) == slot
        assert [pool.ref_count(i) for i in range(pool.num_blocks)] == counts
        assert pool.num_free == counts.count(0)


TestBlockPool = PoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=examples(150), stateful_step_count=60)
TestBlockManager = ManagerMachine.TestCase
TestBlockManager.settings = settings(max_examples=examples(150), stateful_step_count=60)


def test_cached_blocks_are_taken_longest_unused_first_and_ends_before_parents() -> None:
    """Blocks without a hash go first, then the chain freed first, from its end on."""
    manager = _core_parts.BlockManager(num_blocks=7, block_size=1, num_rows=3, max_blocks_per_row=7)
    rows = {}
    for token, (name, length) in enumerate((("old", 2), ("new", 3))):
        row, _ = manager.open([], length)
        parent = _core_parts.root_hash(0)
        for i in range(length):
            parent = _core_parts.hash_block(parent, [token])
            manager.publish(row, i, parent)
        rows[name] = manager.blocks(row)
        manager.close(row)
    row, _ = manager.open([], 7)
    taken = manager.blocks(row)
    assert taken[2:] == [*reversed(rows["old"]), *reversed(rows["new"])]


def test_hash_depends_on_every_token_position_length_and_parent() -> None:
    """Blocks that differ anywhere, or stand behind other blocks or another salt, have different hashes."""
    rng = random.Random(0)
    seen = set()
    for salt in range(20):
        parent = _core_parts.root_hash(salt)
        block = [rng.randrange(2**31) for _ in range(16)]
        variants = [block, block[:15], block[:8], []]
        for position in range(16):
            for bit in range(31):
                variants.append([*block[:position], block[position] ^ (1 << bit), *block[position + 1 :]])
        variants += [[0] * n for n in range(1, 20)]
        for variant in variants:
            seen.add(_core_parts.hash_block(parent, variant))
            seen.add(_core_parts.hash_block(_core_parts.hash_block(parent, block), variant))
    assert len(seen) == 20 * 2 * len(variants)
    lows, highs = {low for low, _ in seen}, {high for _, high in seen}
    assert len(lows) == len(highs) == len(seen)


def test_hash_bits_are_balanced() -> None:
    """One changed input bit changes each output bit about half of the time."""
    rng = random.Random(1)
    flips = [0] * 128
    rounds = 2000
    for _ in range(rounds):
        block = [rng.randrange(50_000) for _ in range(16)]
        low, high = _core_parts.hash_block(_core_parts.root_hash(0), block)
        block[rng.randrange(16)] ^= 1 << rng.randrange(16)
        other_low, other_high = _core_parts.hash_block(_core_parts.root_hash(0), block)
        difference = (low ^ other_low) | (high ^ other_high) << 64
        for bit in range(128):
            flips[bit] += difference >> bit & 1
    assert min(flips) > 0.44 * rounds
    assert max(flips) < 0.56 * rounds


def test_misuse_is_an_internal_error() -> None:
    """Releasing a free block, or using a closed row, is caught where it happens."""
    pool = _core_parts.BlockPool(2)
    with pytest.raises(_core.InternalError, match="block 0 is free already"):
        pool.release(0)
    with pytest.raises(_core.InternalError, match="not cached"):
        pool.acquire(1)
    manager = _core_parts.BlockManager(4, 2, 1, 2)
    with pytest.raises(_core.InternalError, match="need 3 blocks, a row has 2"):
        manager.open([], 5)
    manager.open([], 1)
    with pytest.raises(_core.InternalError, match="1 rows are open"):
        manager.open([], 1)
    manager.close(0)
    with pytest.raises(_core.InternalError, match="row 0"):
        manager.close(0)
    with pytest.raises(_core.InvalidArgument, match="num_blocks: got 0"):
        _core_parts.BlockPool(0)
