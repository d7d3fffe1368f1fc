"""The memory ledger of a GPU: what will be on it before anything is put there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire import _core
from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.models.config import ModelConfig
from quire.runner.logit_adjustments import table_bytes
from quire.runner.logprob_rows import logprobs_bytes
from quire.runner.memory import (
    MemoryLedger,
    activation_bytes,
    kv_block_bytes,
    num_kv_blocks,
    rope_bytes,
)
from quire.runner.step_shapes import StepShapes

# cuBLAS takes 32 MiB on Hopper, torch's allocator rounds up, and modules are loaded on first use.
_LIBRARIES = 192 << 20
# A captured step of a 32-layer model: about 350 kernel nodes. Of the 435 MiB that this makes of 87 shapes,
# the plain steps and what captures them take 182, and the full ones 84 when all of them are captured.
_GRAPH_BYTES_PER_LAYER = 160 << 10
# What a process takes before its engine takes anything: its context, and what the driver keeps for itself.
_CONTEXT = 1 << 30


@dataclass(frozen=True, kw_only=True)
class CudaMemory:
    """Bytes on the device, at the moment before loading."""

    total: int
    free: int

    @classmethod
    def of(cls, device: torch.device) -> CudaMemory:
        free, total = torch.cuda.mem_get_info(device)
        return cls(total=total, free=free)


def plan(
    config: EngineConfig,
    model: ModelConfig,
    *,
    max_model_len: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    shapes: StepShapes,
    memory: CudaMemory,
    workspace: int,
) -> MemoryLedger:
    """What the runner is going to take; the KV cache gets what gpu_memory_utilization leaves, unless another
    setting fixes its size.

    workspace: bytes of the attention's workspace.
    """
    # Of what is taken already no more than a context is this engine's own, and so of its share.
    share = int(config.gpu_memory_utilization * memory.total) - min(_CONTEXT, memory.total - memory.free)
    available = max(0, min(share, memory.free))
    is_fixed = config.num_gpu_blocks_override is not None or config.kv_cache_memory_bytes is not None
    if not is_fixed and memory.free < share - _CONTEXT:
        raise InvalidArgument(
            "gpu_memory_utilization",
            str(config.gpu_memory_utilization),
            f"at most {memory.free / memory.total:.2f}: others have left {memory.free / (1 << 20):.0f} of"
            f" {memory.total / (1 << 20):.0f} MiB",
        )
    spec = model.spec
    table = model.parameters(dtype, torch.device("cuda"))
    weights = table.num_bytes + rope_bytes(spec, max_model_len)
    activations = activation_bytes(config, table)
    graphs = 0 if config.enforce_eager else len(shapes) * spec.num_layers * _GRAPH_BYTES_PER_LAYER
    workspace += table_bytes(config.max_num_seqs, model.vocab_size)
    workspace += _core.BatchLayout.for_adjustments(config.max_num_seqs).num_bytes
    workspace += logprobs_bytes(config.max_num_seqs, config.max_num_batched_tokens)
    # Block tables, and the updates of all their entries that a batch may carry.
    workspace += _LIBRARIES + 3 * 4 * config.max_num_seqs * -(-max_model_len // config.block_size)
    block_bytes = kv_block_bytes(model, config.block_size, kv_dtype.itemsize)
    setting, given = "gpu_memory_utilization", 0
    if is_fixed:
        num_blocks = num_kv_blocks(config, model, max_model_len, kv_dtype.itemsize)
        is_count = config.num_gpu_blocks_override is not None
        setting = "num_gpu_blocks_override" if is_count else "kv_cache_memory_bytes"
        given = num_blocks if is_count else num_blocks * block_bytes
    else:
        left = available - weights - activations - workspace - graphs
        needed = -(-max_model_len // config.block_size)
        num_blocks = max(0, left // block_bytes)
        if left >= 0 and num_blocks < needed:
            raise InvalidArgument(
                "max_model_len",
                str(max_model_len),
                f"at most {num_blocks * config.block_size}: weights and activations leave"
                f" {left / (1 << 20):.0f} MiB for the KV cache ({block_bytes} bytes per block of"
                f" {config.block_size} tokens); or more gpu_memory_utilization, or fewer"
                " max_num_batched_tokens",
            )
    return MemoryLedger(
        weights=weights,
        kv_blocks=num_blocks * block_bytes,
        activations=activations,
        workspace=workspace,
        graphs=graphs,
        available=available,
        num_blocks=num_blocks,
        kv_setting=setting,
        kv_given=given,
        limit=f"allowed by gpu_memory_utilization {config.gpu_memory_utilization} of"
        f" {memory.total / (1 << 20):.0f} MiB, {memory.free / (1 << 20):.0f} MiB of them free",
    )
