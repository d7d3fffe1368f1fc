"""The step loop: three calls a step, and everything else is C++ or the runner's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from quire.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    import numpy as np
    from quire import _core


class Runner(Protocol):
    """The waist between scheduling and the model: whatever turns a batch into ids can take the model's place."""

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


def serve(server: _core.EngineServer, core: _core.EngineCore, runner: Runner) -> None:
    """Run steps until the client is gone."""
    while server.wait_for_work():
        server.publish(step(core, runner))
