"""The step loop: four calls a step, and everything else is C++ or the runner's business.

With two batches in flight, the host schedules a step while the device runs the one before, whose ids it does
not know yet:

    host     schedule+launch 1 | schedule+launch 2 | collect 1, update 1 | schedule+launch 3 | collect 2, ...
    device                  [ 1                ][ 2                              ][ 3
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.errors import EngineError

if TYPE_CHECKING:
    from quire import _core
    from quire.runner.sampled import Sampled

log = logging.getLogger(__name__)


class Runner(Protocol):
    """The waist between scheduling and the model: whatever turns a batch into ids can take the model's
    place."""

    @property
    def max_batches_in_flight(self) -> int:
        """How many batches may be launched and not collected; at most the core's max_batches_in_flight."""
        ...

    def launch(self, batch: _core.Batch) -> None:
        """Start computing the batch's tokens, after those of the batches launched before. What it needs of
        `batch.block_tables` it reads now."""
        ...

    def collect(self) -> Sampled:
        """What the oldest batch in flight gave, once it is there; valid until the next call.

        A sample may give several ids in a row (`Sampled.counts`), each drawn as if it had come alone, but
        only while no other batch is in flight. The core takes those to which the batch's mask applies, and
        the next batch computes their KV.
        """
        ...

    def discard(self) -> None:
        """Nobody will collect what is launched. Returns when none of it runs any more."""
        ...


@runtime_checkable
class GraphRunner(Protocol):
    """A runner whose steps are CUDA graphs."""

    @property
    def num_graph_replays(self) -> int: ...

    @property
    def num_graph_captures(self) -> int: ...


def step(core: _core.EngineCore, runner: Runner) -> _core.StepOutputs:
    """Launch as many batches as may be in flight, then update with the oldest one's ids. When none is and
    nothing can run: the ends of cancelled and refused requests.

    When the runner raises, batches stay in flight until EngineCore.clear() (or forget_batches()) and
    discard().
    """
    begin = time.perf_counter_ns()
    while core.num_batches_in_flight() < runner.max_batches_in_flight:
        batch = core.schedule()
        if not batch.num_tokens:
            break
        runner.launch(batch)
    if core.num_batches_in_flight():
        launched = time.perf_counter_ns()
        sampled = runner.collect()
        collected = time.perf_counter_ns()
        outputs = core.update(*sampled)
        core.observe_step_host(launched - begin + time.perf_counter_ns() - collected)
        return outputs
    outputs = core.take_outputs()
    if core.has_unfinished_requests():
        # Going round again would spin at full load for ever.
        raise EngineError("the scheduler has unfinished requests and nothing to run")
    return outputs


def serve(
    server: _core.EngineServer, core: _core.EngineCore, runner: Runner, step_log: StepLog | None = None
) -> None:
    """Run steps until the client is gone."""
    graphs = runner if isinstance(runner, GraphRunner) else None
    while server.wait_for_work():
        step(core, runner)
        if graphs:
            core.report("graph_replays", graphs.num_graph_replays)
            core.report("graph_captures", graphs.num_graph_captures)
        server.publish()
        if step_log:
            step_log.after_step(core)


class StepLog:
    """One line every few seconds in which steps ran."""

    def __init__(self, interval: float = 10.0) -> None:
        self.interval = interval
        self._since = time.monotonic()
        self._num_computed_prompt_tokens = 0
        self._num_generation_tokens = 0

    def after_step(self, core: _core.EngineCore) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < self.interval:
            return
        stats = core.stats()
        log.info(
            "prompt %.0f tokens/s, generation %.0f tokens/s, running %d, waiting %d, KV cache %.1f %% used",
            (stats.num_computed_prompt_tokens - self._num_computed_prompt_tokens) / elapsed,
            (stats.num_generation_tokens - self._num_generation_tokens) / elapsed,
            stats.num_running,
            stats.num_waiting,
            100 * (1 - stats.num_free_blocks / stats.num_blocks),
        )
        self._since += elapsed
        self._num_computed_prompt_tokens = stats.num_computed_prompt_tokens
        self._num_generation_tokens = stats.num_generation_tokens
