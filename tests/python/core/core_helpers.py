"""What core tests share: small token tables, a fake model that proves every slot, a driver of EngineCore."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from quire import _core

POISON = -(2**31)  # in cache slots that nobody wrote


def byte_table() -> _core.TokenTable:
    """ByteLevel over 256 tokens: id = byte."""
    return _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, [bytes([b]) for b in range(256)], [0] * 256)


def word_table(size: int) -> _core.TokenTable:
    """Words joined with a space: "w0 w1 ..."."""
    texts = [f"w{i}".encode() for i in range(size)]
    return _core.TokenTable(_core.DecoderKind.JOINED, texts, [0] * size, separator=" ")


def make_core(table: _core.TokenTable | None = None, **settings: object) -> _core.EngineCore:
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
    return _core.EngineCore(_core.EngineConfig(**(defaults | settings)), table or byte_table())


@dataclass
class Sequence:
    """What the driver knows of a request from the outside."""

    prompt: list[int]
    sampled: list[int] = field(default_factory=list)  # as the fake model gave them
    released: list[int] = field(default_factory=list)  # as the core let them out
    text: bytes = b""
    finish_reason: str = ""
    num_cached_tokens: int = 0
    num_releases: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.sampled


class FakeModel:
    """Next token = function of all previous tokens, read through the block tables.

    Its KV cache holds token ids. Each step it writes the batch's tokens to their slots, reads each request's
    whole sequence back through its block table, and compares it with what the request's tokens are. So a
    wrong block, slot, shared prefix or recomputation fails at the step where it happens.
    """

    def __init__(self, core: _core.EngineCore) -> None:
        self.block_size = core.config.block_size
        self.vocab_size = core.config.vocab_size
        self.cache = np.full(core.config.num_blocks * self.block_size, POISON, dtype=np.int64)

    def execute(self, batch: _core.Batch, sequences: dict[int, Sequence]) -> np.ndarray:
        assert len(set(batch.slot_mapping.tolist())) == batch.num_tokens, "two tokens share a slot"
        self.cache[batch.slot_mapping] = batch.token_ids
        ends: list[int] = []
        for i in range(batch.num_reqs):
            tokens = sequences[int(batch.request_ids[i])].tokens
            begin, end = batch.query_start_loc[i : i + 2]
            seq_len = int(batch.seq_lens[i])
            assert batch.positions[begin:end].tolist() == list(range(seq_len - int(end - begin), seq_len))
            positions = np.arange(seq_len)
            row = batch.block_tables[batch.block_table_rows[i]]
            slots = (
                row[positions // self.block_size].astype(np.int64) * self.block_size
                + positions % self.block_size
            )
            assert slots[seq_len - int(end - begin) :].tolist() == batch.slot_mapping[begin:end].tolist()
            assert self.cache[slots].tolist() == tokens[:seq_len]
            if seq_len == len(tokens):
                ends.append(i)
        assert batch.sample_req_idx.tolist() == ends
        assert batch.sample_token_idx.tolist() == [int(batch.query_start_loc[i + 1]) - 1 for i in ends]
        sampled = np.empty(batch.num_sampled, dtype=np.int32)
        for j, i in enumerate(ends):
            sequence = sequences[int(batch.request_ids[i])]
            assert batch.output_idx[j] == len(sequence.sampled)
            masked = set(batch.mask_ids[batch.mask_offsets[j] : batch.mask_offsets[j + 1]].tolist())
            sampled[j] = self.next_token(sequence.tokens, masked)
        return sampled

    def next_token(self, tokens: list[int], masked: Iterable[int] = ()) -> int:
        token = zlib.crc32(np.asarray(tokens, dtype=np.int32).tobytes()) % self.vocab_size
        while token in masked:
            token = (token + 1) % self.vocab_size
        return token


class Driver:
    """Runs requests through a core with the fake model, and keeps what comes out."""

    def __init__(self, core: _core.EngineCore) -> None:
        self.core = core
        self.model = FakeModel(core)
        self.sequences: dict[int, Sequence] = {}
        self.params: dict[int, _core.SamplingParams] = {}

    def add(self, request_id: int, prompt: list[int], **params: object) -> None:
        self.params[request_id] = _core.SamplingParams(**params)
        self.core.add_request(request_id, prompt, self.params[request_id])
        self.sequences[request_id] = Sequence(prompt)

    def step(self, cancel: Iterable[int] = ()) -> _core.Batch:
        """One step; `cancel` happens between schedule() and update()."""
        batch = self.core.schedule()
        if batch.num_tokens == 0:
            self.take(self.core.take_outputs())
            return batch
        sampled = self.model.execute(batch, self.sequences)
        for j, i in enumerate(batch.sample_req_idx):
            self.sequences[int(batch.request_ids[i])].sampled.append(int(sampled[j]))
        for request_id in cancel:
            self.core.cancel(request_id)
        self.take(self.core.update(sampled))
        self.core.check_integrity()
        return batch

    def take(self, outputs: _core.StepOutputs) -> None:
        for release in outputs.releases:
            sequence = self.sequences[release.request_id]
            assert sequence.finish_reason == "", "a release after the end"
            sequence.released += release.token_ids
            sequence.text += self.core.token_table.decode(
                release.token_ids[: release.num_text_ids],
                release.is_first,
                release.trim,
                self.params[release.request_id].skip_special_tokens,
            ).encode()
            sequence.finish_reason = release.finish_reason
            sequence.num_cached_tokens = release.num_cached_tokens
            sequence.num_releases += 1

    def run(self, max_steps: int = 10_000) -> dict[int, Sequence]:
        """Steps until nothing is left; every block is free then."""
        for _ in range(max_steps):
            if not self.core.has_unfinished_requests():
                break
            self.step()
        assert not self.core.has_unfinished_requests(), "requests do not finish"
        stats = self.core.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        return self.sequences
