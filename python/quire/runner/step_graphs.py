"""The steps of an engine as CUDA graphs."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import track

from quire.runner.step_shapes import StepShape, StepShapes

log = logging.getLogger(__name__)


class StepGraphs:
    """Plain steps, all captured at the start, and full ones, each captured when a batch needs it first: most
    engines never need any. Used on one stream, which must be the current one."""

    def __init__(self, compute: Callable[[StepShape, bool], None]) -> None:
        """compute: launches the kernels of a step, plain or full, on the current stream."""
        self._compute = compute
        self._pool = torch.cuda.graph_pool_handle()
        self.plain: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self.full: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self.num_replays = 0

    def capture_plain(self, shapes: StepShapes, fill_with_padding: Callable[[], None]) -> None:
        """All of them; each is run once before, so that libraries have loaded what they need."""
        start = time.monotonic()
        free_before, _ = torch.cuda.mem_get_info()
        # What a former engine left, its graphs above all, is freed now and not while the stream captures.
        gc.collect()
        shape = None
        for shape in track(
            shapes.all(),
            description="capturing CUDA graphs",
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ):
            fill_with_padding()
            self._compute(shape, False)
            self.plain[shape] = self._capture(shape, is_full=False)
        if shape is not None:
            self._compute(shape, True)  # so that the kernels of full steps are loaded, too
        torch.cuda.current_stream().synchronize()
        free_after, _ = torch.cuda.mem_get_info()
        log.info(
            "captured %d CUDA graphs in %.1f s, %.0f MiB",
            len(self.plain),
            time.monotonic() - start,
            (free_before - free_after) / (1 << 20),
        )

    def replay(self, shape: StepShape, *, is_full: bool) -> None:
        graphs = self.full if is_full else self.plain
        graph = graphs.get(shape)
        if graph is None:
            # Another batch may be running: nothing here waits for it.
            graph = graphs[shape] = self._capture(shape, is_full)
        graph.replay()
        self.num_replays += 1

    @property
    def num_captures(self) -> int:
        return len(self.plain) + len(self.full)

    def _capture(self, shape: StepShape, is_full: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with _no_garbage_collection():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._compute(shape, is_full)
            finally:  # a stream that captures for ever would be the end of the whole process
                graph.capture_end()
        return graph


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph or an engine that were freed while a stream captures: CUDA refuses that, and the capture is
    lost."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
