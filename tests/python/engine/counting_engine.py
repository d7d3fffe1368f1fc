"""An engine whose model counts, behind a socketpair: what tests of EngineServer talk to."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from quire import _core
from quire.engine.loop import serve
from quire.runner.sampled import Logprobs, Sampled
from wire_client import Client

VOCAB_SIZE = 256
EOS = 0


def logprob_rows(ids: np.ndarray) -> Logprobs:
    """Of each token its id in 256ths, at rank 2 behind token 99."""
    own = (-ids / 256).astype(np.float32)
    top_ids, top = np.full((len(ids), 20), -1, np.int32), np.full((len(ids), 20), -np.inf, np.float32)
    top_ids[:, 0], top[:, 0] = 99, -0.5
    return own, np.full(len(ids), 2, np.int32), top_ids, top


@dataclass
class CountingRunner:
    """Says the number of the output token, from 1 on; can be told to wait before each step."""

    max_batches_in_flight: int = 1
    may_run: threading.Event = field(default_factory=threading.Event)
    step_seconds: float = 0  # time for the server's other thread, where a test needs it to get its turn
    num_steps: int = 0
    num_sampled: int = 0
    launched: deque[Sampled] = field(default_factory=deque)

    def launch(self, batch: _core.Batch) -> None:
        assert self.may_run.wait(60)
        time.sleep(self.step_seconds)
        self.num_steps += 1
        self.num_sampled += batch.num_sampled
        ids = (batch.output_idx + 1).astype(np.int32)
        prompt_logprobs = logprob_rows(batch.prompt_next_ids) if batch.num_prompt_rows else None
        self.launched.append(Sampled(ids, logprob_rows(ids) if batch.has_logprobs else None, prompt_logprobs))

    def collect(self) -> Sampled:
        return self.launched.popleft()

    def discard(self) -> None:
        self.launched.clear()


def make_core(**settings: int) -> _core.EngineCore:
    table = _core.TokenTable(
        _core.DecoderKind.BYTE_LEVEL, [bytes([65 + i % 26]) for i in range(VOCAB_SIZE)], [0] * VOCAB_SIZE
    )
    values = {"num_blocks": 64, "max_model_len": 128, "vocab_size": VOCAB_SIZE, "max_num_seqs": 16} | settings
    return _core.EngineCore(_core.EngineConfig(**values, eos_token_ids=[EOS]), table)


class Engine:
    """The step loop on its own thread, and the client's end of its socket."""

    def __init__(self, **settings: int) -> None:
        ours, theirs = socket.socketpair()
        self.client = Client(ours)
        self.core = make_core(**settings)
        self.runner = CountingRunner(self.core.config.max_batches_in_flight)
        self.runner.may_run.set()
        self.server = _core.EngineServer(self.core, theirs.detach())
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> Engine:
        self.thread.start()
        return self

    def _serve(self) -> None:
        try:
            serve(self.server, self.core, self.runner)
        except Exception as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive(), "the step loop goes on"
