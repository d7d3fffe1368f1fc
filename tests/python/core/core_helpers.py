"""What core tests share: small token tables, a fake model that proves every slot, a driver of EngineCore."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from quire import _core

REQUEST_FIELDS = ("priority", "arrival_ns", "tokenize_ns", "deadline_ns", "return_receipt")
LISTS = ("block_copies", "block_table_updates")  # columns of any length
POISON = -(2**31)  # in cache slots that nobody wrote


def byte_table() -> _core.TokenTable:
    """ByteLevel over 256 tokens: id = byte."""
    return _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, [bytes([b]) for b in range(256)], [0] * 256)


def word_table(size: int) -> _core.TokenTable:
    """Words joined with a space: "w0 w1 ..."."""
    texts = [f"w{i}".encode() for i in range(size)]
    return _core.TokenTable(_core.DecoderKind.JOINED, texts, [0] * size, separator=" ")


def make_core(
    table: _core.TokenTable | None = None, clock: Callable[[], int] | None = None, **settings: object
) -> _core.EngineCore:
    """An EngineCore with small defaults that a test overrides."""
    defaults: dict[str, object] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_model_len": 128,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "vocab_size": 256,
        "watermark": 0.0,
    }
    return _core.EngineCore(_core.EngineConfig(**(defaults | settings)), table or byte_table(), clock)


@dataclass
class Sequence:
    """What the driver knows of a request from the outside."""

    prompt: list[int]
    sampled: list[int] = field(default_factory=list)  # as the fake model gave them
    released: list[int] = field(default_factory=list)  # as the core let them out
    index: int = 0
    text: bytes = b""
    finish_reason: str = ""
    num_cached_tokens: int = 0
    num_releases: int = 0
    error: str = ""
    receipt: _core.RequestTiming | None = None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.sampled


Key: TypeAlias = "int | tuple[int, int]"


def key_of(request_id: int, index: int) -> Key:
    """Of a sequence in Driver.sequences: that of index 0 goes by its request."""
    return (request_id, index) if index else request_id


def id_and_index(key: Key) -> tuple[int, int]:
    return key if isinstance(key, tuple) else (key, 0)


@dataclass
class Launch:
    """A batch on its way to the fake model: what a device gets, and what the host had when it left."""

    arrays: dict[str, np.ndarray]  # as packed, padding included
    keys: list[Key]
    block_copies: list[list[int]]
    block_tables: np.ndarray  # [num_seqs, stride]: the requests' rows
    request_of_sample: list[int]
    tables: dict[str, np.ndarray]  # what it writes to the samplers' tables


def packed_tables(batch: _core.Batch) -> dict[str, np.ndarray]:
    """What a batch writes to the samplers' tables, read back from a buffer that was poisoned."""
    layout = _core.BatchLayout.for_tables(batch)
    buffer = np.full(layout.num_bytes + 64, 0xCC, dtype=np.uint8)
    batch.pack(layout, buffer.ctypes.data)
    assert (buffer[layout.num_bytes :] == 0xCC).all()
    arrays = {}
    for name, array in layout.arrays.items():
        assert array.offset % 16 == 0
        given = getattr(batch, name)
        packed = buffer[array.offset : array.offset + given.nbytes].view(given.dtype)
        arrays[name] = packed.reshape(given.shape)
        assert arrays[name].tolist() == given.tolist()
    return arrays


def write_masks(table: np.ndarray, updates: np.ndarray) -> None:
    """Write a batch's mask_updates to a table of masks."""
    places, words = updates.T
    assert len(set(places.tolist())) == len(places)
    table.reshape(-1)[places] = words.astype(np.uint32)


def masked_ids(row: np.ndarray) -> set[int]:
    """The ids whose bits a row of the table has not set."""
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little") == 0).tolist())


class FakeModel:
    """Next token = function of all previous tokens, read through the block tables.

    Its KV cache holds token ids. Each step it writes the batch's tokens to their slots, reads each request's
    whole sequence back through its block table, and compares it with what the request's tokens are. So a
    wrong block, slot, shared prefix or recomputation fails at the step where it happens.

    Like a device it gets a batch as one packed buffer, runs it as late as it can (in collect(), when the core
    is far ahead), and keeps for itself a copy of the block tables and the last id sampled for each row.
    """

    def __init__(self, core: _core.EngineCore, sequences: dict[Key, Sequence]) -> None:
        config = core.config
        self.sequences = sequences
        self.block_size = config.block_size
        self.window = config.window
        self.vocab_size = config.vocab_size
        self.max_num_seqs = config.max_num_seqs
        self.max_batches_in_flight = config.max_batches_in_flight
        self.layout = _core.BatchLayout(config)
        self.stride = -(-config.max_model_len // config.block_size)
        self.launched: deque[Launch] = deque()
        self.cache = np.full(config.num_blocks * self.block_size, POISON, dtype=np.int64)
        self.block_tables = np.full((self.max_num_seqs, self.stride), POISON, dtype=np.int64)
        self.last_token_ids = np.full(self.max_num_seqs + 1, POISON, dtype=np.int64)
        num_words = -(-self.vocab_size // 32)
        self.token_masks = np.full((self.max_num_seqs + 1, num_words), 0x55555555, dtype=np.uint32)

    def launch(self, batch: _core.Batch) -> None:
        rows = batch.block_table_rows
        assert len(self.launched) < self.max_batches_in_flight
        self.launched.append(
            Launch(
                self.packed(batch),
                list(map(key_of, batch.request_ids.tolist(), batch.sequence_index.tolist())),
                batch.block_copies.tolist(),
                batch.block_tables[rows].copy(),
                np.flatnonzero(np.diff(batch.sample_offsets)).tolist(),
                packed_tables(batch),
            )
        )

    def packed(self, batch: _core.Batch) -> dict[str, np.ndarray]:
        """The arrays of a padded batch, read from no more than the used prefix of its buffer."""
        num_tokens, num_seqs, num_sampled = (
            -(-size // 8) * 8 for size in (batch.num_tokens, batch.num_seqs, batch.num_sampled)
        )
        buffer = np.full(self.layout.num_bytes, 0xCC, dtype=np.uint8)
        used = batch.pack(self.layout, buffer.ctypes.data, num_tokens, num_seqs, num_sampled)
        assert (buffer[used:] == 0xCC).all()
        prefix = buffer[:used].tobytes()
        arrays = {}
        for name, array in self.layout.arrays.items():
            size = array.length(num_tokens, num_seqs, num_sampled)
            if name in LISTS:
                size = getattr(batch, name).size
            arrays[name] = np.frombuffer(
                prefix, array.dtype, size, array.offset if used > array.offset else 0
            )
        return arrays

    def collect(self) -> np.ndarray:
        launch = self.launched.popleft()
        arrays = launch.arrays
        _, num_tokens, num_sampled, num_updates = arrays["header"].tolist()
        self.check_padding(arrays)
        updates = arrays["block_table_updates"].reshape(-1, 2)
        assert len(updates) == num_updates == len(set(updates[:, 0].tolist()))
        self.block_tables.reshape(-1)[updates[:, 0]] = updates[:, 1]

        copies = arrays["block_copies"].reshape(-1, 2).tolist()
        assert copies == launch.block_copies
        assert not {source for source, _ in copies} & {destination for _, destination in copies}
        blocks = self.cache.reshape(-1, self.block_size)
        for source, destination in copies:
            blocks[destination] = blocks[source]
        slot_mapping = arrays["slot_mapping"][:num_tokens]
        written = slot_mapping >= 0
        token_ids = arrays["token_ids"][:num_tokens]
        token_ids = np.where(token_ids < 0, self.last_token_ids[np.maximum(~token_ids, 0)], token_ids)
        assert len(set(slot_mapping[written].tolist())) == written.sum(), "two tokens share a slot"
        self.cache[slot_mapping[written]] = token_ids[written]
        starts = arrays["query_start_loc"]
        ends: list[int] = []
        for i, key in enumerate(launch.keys):
            tokens = self.sequences[key].tokens
            begin, end = starts[i : i + 2]
            seq_len = int(arrays["seq_lens"][i])
            first = seq_len - int(end - begin)
            assert arrays["positions"][begin:end].tolist() == list(range(first, seq_len))
            positions = np.arange(seq_len)
            row = self.block_tables[arrays["block_table_rows"][i]]
            num_blocks = -(-seq_len // self.block_size)
            assert row[:num_blocks].tolist() == launch.block_tables[i, :num_blocks].tolist()
            slots = row[positions // self.block_size] * self.block_size + positions % self.block_size
            if slot_mapping[begin] < 0:  # its KV is its sibling's
                assert (end - begin, seq_len) == (1, len(self.sequences[key].prompt))
            else:
                assert slots[first:].tolist() == slot_mapping[begin:end].tolist()
            seen = max(0, first + 1 - self.window) if self.window else 0
            assert self.cache[slots[seen:]].tolist() == tokens[seen:seq_len]
            if seq_len == len(tokens):
                ends.append(i)
        assert len(ends) == num_sampled
        assert launch.request_of_sample == ends
        assert arrays["sample_token_idx"][:num_sampled].tolist() == [int(starts[i + 1]) - 1 for i in ends]
        rows = arrays["sample_rows"]
        assert rows[:num_sampled].tolist() == arrays["block_table_rows"][ends].tolist()
        self.write_tables(launch.tables)
        self.last_token_ids[rows[num_sampled:]] = 0
        runs: list[list[int]] = []
        for self.sample_idx, i in enumerate(ends):
            row = rows[self.sample_idx]
            assert arrays["output_idx"][self.sample_idx] == len(self.sequences[launch.keys[i]].sampled)
            assert arrays["mask_rows"][self.sample_idx] in (-1, row)
            is_masked = arrays["mask_rows"][self.sample_idx] >= 0
            runs.append(self.draw(launch.keys[i], masked_ids(self.token_masks[row]) if is_masked else set()))
            self.last_token_ids[row] = runs[-1][-1]
        self.counts = np.array([len(run) for run in runs], dtype=np.int32)
        return np.array([token for run in runs for token in run], dtype=np.int32)

    def draw(self, key: Key, masked: set[int]) -> list[int]:
        """The ids in a row that a sample gives."""
        sequence = self.sequences[key]
        token = self.next_token(sequence.tokens, masked, sequence.index)
        sequence.sampled.append(token)
        return [token]

    def write_tables(self, tables: dict[str, np.ndarray]) -> None:
        write_masks(self.token_masks, tables["mask_updates"])

    def check_padding(self, arrays: dict[str, np.ndarray]) -> None:
        num_seqs, num_tokens, num_sampled, _ = arrays["header"].tolist()
        paddings = {
            num_tokens: {"token_ids": 0, "positions": 0, "slot_mapping": -1},
            num_seqs + 1: {"query_start_loc": num_tokens},
            num_seqs: {"seq_lens": 0, "block_table_rows": 0},
            num_sampled: {
                "sample_token_idx": 0,
                "sample_rows": self.max_num_seqs,
                "temperature": 0,
                "top_p": 1,
                "top_k": 0,
                "seed": 0,
                "output_idx": 0,
                "mask_rows": -1,
            },
        }
        for begin, values in paddings.items():
            for name, value in values.items():
                assert (arrays[name][begin:] == value).all(), name

    def discard(self, has_run: bool) -> None:
        """The device fails before or after it has run what was launched: nobody learns the ids, and it knows
        nothing any more but its cache."""
        if not has_run:
            self.launched.clear()
        lengths = {key: len(sequence.sampled) for key, sequence in self.sequences.items()}
        while self.launched:
            self.collect()
        for key, sequence in self.sequences.items():
            del sequence.sampled[lengths[key] :]
        self.block_tables.fill(POISON)
        self.last_token_ids.fill(POISON)
        self.token_masks.fill(0x55555555)

    def next_token(self, tokens: list[int], masked: Iterable[int] = (), index: int = 0) -> int:
        """index: of the sequence; stands for the seed."""
        token = zlib.crc32(np.asarray(tokens, dtype=np.int32).tobytes(), index) % self.vocab_size
        while token in masked:
            token = (token + 1) % self.vocab_size
        return token


class Driver:
    """Runs requests through a core with the fake model, and keeps what comes out."""

    def __init__(self, core: _core.EngineCore) -> None:
        self.core = core
        self.sequences: dict[Key, Sequence] = {}
        self.model = FakeModel(core, self.sequences)
        self.params: dict[int, _core.SamplingParams] = {}
        self.observed: dict[str, list[float]] = {}  # what histograms got, by series

    def add(self, request_id: int, prompt: list[int], **fields: object) -> None:
        """`fields`: of SamplingParams, and those that EngineCore.add_request() takes beside them."""
        more = {name: fields.pop(name) for name in REQUEST_FIELDS if name in fields}
        self.params[request_id] = _core.SamplingParams(**fields)
        self.core.add_request(request_id, prompt, self.params[request_id], **more)
        for index in range(self.params[request_id].n):
            self.sequences[key_of(request_id, index)] = Sequence(prompt, index=index)

    def step(self, cancel: Iterable[int] = ()) -> _core.Batch:
        """Launches what may be in flight and ends the oldest batch; `cancel` happens before it ends. Returns
        the batch that was scheduled last."""
        batch = self.launch()
        while batch.num_tokens and self.core.num_batches_in_flight() < self.core.config.max_batches_in_flight:
            batch = self.launch()
        for request_id in cancel:
            self.core.cancel(request_id)
        self.collect()
        return batch

    def launch(self) -> _core.Batch:
        batch = self.core.schedule()
        if batch.num_tokens:
            self.model.launch(batch)
        else:
            assert len(batch.block_table_updates) == 0
        self.core.check_integrity()
        return batch

    def collect(self) -> None:
        """The end of the oldest batch in flight; without one, what may leave all the same."""
        if self.core.num_batches_in_flight():
            ids = self.model.collect()
            self.take(self.core.update(ids, counts=self.model.counts))
            self.core.check_integrity()
        else:
            self.take(self.core.take_outputs())

    def forget(self, has_run: bool) -> None:
        """The model run fails."""
        self.core.forget_batches()
        self.model.discard(has_run)
        self.core.check_integrity()

    def take(self, outputs: _core.StepOutputs) -> None:
        for series, value, count in outputs.observations:
            self.observed.setdefault(series, []).extend([value] * count)
        for release in outputs.releases:
            sequence = self.sequences[key_of(release.request_id, release.index)]
            assert sequence.finish_reason == "", "a release after the end"
            sequence.released += release.token_ids
            sequence.text += self.core.token_table.decode(
                release.token_ids[: release.num_text_ids],
                release.is_first,
                release.trim,
                self.params[release.request_id].skip_special_tokens,
                release.open_text,
            ).encode()
            sequence.finish_reason = release.finish_reason
            sequence.num_cached_tokens = release.usage["num_cached_tokens"]
            sequence.num_releases += 1
            sequence.error = release.error
            sequence.receipt = release.receipt

    def run(self, max_steps: int = 10_000) -> dict[Key, Sequence]:
        """Steps until nothing is left; every block is free then."""
        while self.core.num_batches_in_flight():
            self.collect()
        for _ in range(max_steps):
            if not self.core.has_unfinished_requests():
                break
            self.step()
        assert not self.core.has_unfinished_requests(), "requests do not finish"
        stats = self.core.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        return self.sequences
