"""What the runner of an engine will be: its device, its memory, and how many batches it takes at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from quire.config import EngineConfig
from quire.errors import InvalidArgument, UnsupportedModel
from quire.models.config import ModelConfig
from quire.runner.device import resolve_device
from quire.runner.dtype import resolve_cuda_dtype, resolve_dtype
from quire.runner.memory import MemoryLedger, num_kv_blocks, process_memory
from quire.runner.model_runner import ModelRunner
from quire.runner.threads import ThreadPolicy

if TYPE_CHECKING:
    from quire import _core
    from quire.engine.loop import Runner

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryClaim:
    """Memory that an engine is going to take of a device that several may share."""

    device: str
    num_bytes: int
    limit: int  # what all of them may take
    setting: str  # what makes the claim as large as it is
    value: float


@dataclass(frozen=True, kw_only=True)
class RunnerPlan:
    """A runner that fits, before it takes anything."""

    num_blocks: int
    max_batches_in_flight: int
    claim: MemoryClaim
    ledger: MemoryLedger
    memory_used: Callable[[], int]
    """Bytes of the ledger's device that were taken since it was planned."""
    start: Callable[[_core.EngineConfig], Runner]
    """Load the model. Takes the core's settings, which must be those of the plan."""


def plan_runner(
    config: EngineConfig, model: ModelConfig, max_model_len: int, threads: ThreadPolicy
) -> RunnerPlan:
    """Raises InvalidArgument or UnsupportedModel naming what to change when something does not fit."""
    device = resolve_device(config)
    if device.type == "cuda":
        return _plan_cuda(config, model, max_model_len, device)
    dtype = resolve_dtype(config, model)
    num_blocks = num_kv_blocks(config, model, max_model_len, dtype.itemsize)
    before = process_memory()
    ledger = MemoryLedger.plan(config, model, max_model_len, num_blocks, dtype)
    log.info("%s", ledger)
    ledger.check()

    def start(core_config: _core.EngineConfig) -> Runner:
        return ModelRunner(
            config, model, threads, dtype=dtype, num_blocks=num_blocks, max_model_len=max_model_len
        )

    return RunnerPlan(
        num_blocks=num_blocks,
        max_batches_in_flight=ModelRunner.max_batches_in_flight,
        claim=MemoryClaim(
            device="this machine",
            num_bytes=ledger.total,
            limit=ledger.available,
            setting=ledger.kv_setting,
            value=ledger.kv_given,
        ),
        ledger=ledger,
        memory_used=lambda: max(process_memory() - before, 0),
        start=start,
    )


def _plan_cuda(
    config: EngineConfig, model: ModelConfig, max_model_len: int, device: torch.device
) -> RunnerPlan:
    # Not at the top: the CUDA kernels may not be built.
    from quire.runner import cuda_memory
    from quire.runner.cuda_runner import CudaRunner, make_attentions
    from quire.runner.step_shapes import StepShapes

    if config.block_size < 16 or config.block_size & (config.block_size - 1):
        raise InvalidArgument("block_size", str(config.block_size), "16, 32, 64, ... 1024 on a GPU")
    dtype = resolve_cuda_dtype(config, model)
    kv_dtype = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype
    memory = cuda_memory.CudaMemory.of(device)  # before this engine takes anything
    try:
        attentions = make_attentions(config, model, max_model_len, device)
    except ValueError as error:
        raise UnsupportedModel(f"{model.folder}: {error}") from None
    ledger = cuda_memory.plan(
        config,
        model,
        max_model_len=max_model_len,
        dtype=dtype,
        kv_dtype=kv_dtype,
        shapes=StepShapes(config.max_num_seqs, config.max_num_batched_tokens),
        memory=memory,
        workspace=sum(attention.workspace.nbytes for attention in attentions.values()),
    )
    log.info("%s on %s", ledger, torch.cuda.get_device_name(device))
    ledger.check()

    def start(core_config: _core.EngineConfig) -> Runner:
        return CudaRunner(
            config, core_config, model, attentions, dtype=dtype, kv_dtype=kv_dtype, device=device
        )

    is_share = ledger.kv_setting == "gpu_memory_utilization"
    share = config.gpu_memory_utilization
    return RunnerPlan(
        num_blocks=ledger.num_blocks,
        max_batches_in_flight=CudaRunner.max_batches_in_flight,
        claim=MemoryClaim(
            device=f"GPU {device.index}",
            num_bytes=int(share * memory.total) if is_share else ledger.total,
            limit=memory.total,
            setting=ledger.kv_setting,
            value=share if is_share else ledger.kv_given,
        ),
        ledger=ledger,
        memory_used=lambda: max(memory.free - cuda_memory.CudaMemory.of(device).free, 0),
        start=start,
    )
