"""The step loop: three calls a step, and everything else is C++ or the runner's business."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from quire.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quire import _core

log = logging.getLogger(__name__)


class Runner(Protocol):
    """The waist between scheduling and the model: whatever turns a batch into ids can take the model's
    place."""

    def execute(self, batch: _core.Batch) -> NDArray[np.int32]:
        """Compute the batch's tokens and return one id for each sampled request: ``[num_sampled]``."""
        ...


def step(core: _core.EngineCore, runner: Runner) -> _core.StepOutputs:
    """Schedule, run, update. When nothing can run: the ends of cancelled and refused requests."""
    batch = core.schedule()
    if batch.num_tokens:
        return core.update(runner.execute(batch))
    outputs = core.take_outputs()
    if core.has_unfinished_requests():
        # Going round again would spin at full load for ever.
        raise EngineError("the scheduler has unfinished requests and nothing to run")
    return outputs


def serve(
    server: _core.EngineServer, core: _core.EngineCore, runner: Runner, step_log: StepLog | None = None
) -> None:
    """Run steps until the client is gone."""
    while server.wait_for_work():
        step(core, runner)
        server.publish()
        if step_log:
            step_log.after_step(core)


class StepLog:
    """One line every few seconds in which steps ran."""

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = interval
        self._since = time.monotonic()
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0

    def after_step(self, core: _core.EngineCore) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < self.interval:
            return
        stats = core.stats()
        log.info(
            "prompt %.0f tokens/s, generation %.0f tokens/s, running %d, waiting %d, KV cache %.1f %% used",
            (stats.num_prompt_tokens - self._num_prompt_tokens) / elapsed,
            (stats.num_generation_tokens - self._num_generation_tokens) / elapsed,
            stats.num_running,
            stats.num_waiting,
            100 * (1 - stats.num_free_blocks / stats.num_blocks),
        )
        self._since += elapsed
        self._num_prompt_tokens = stats.num_prompt_tokens
        self._num_generation_tokens = stats.num_generation_tokens
