"""The memory ledger: what the engine will hold, in bytes, beside what the machine has, before it is taken."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.models.activations import Activations
from quire.models.config import ModelConfig
from quire.models.parameters import ParameterTable
from quire.models.spec import ModelSpec

DEFAULT_KV_CACHE_BYTES = 512 << 20
_UNLIMITED = 1 << 62


def kv_block_shape(spec: ModelSpec, block_size: int) -> tuple[int, ...]:
    """One block: keys and values of every layer, in one piece of memory."""
    return spec.num_layers, 2, block_size, spec.attention.num_kv_heads, spec.attention.head_dim


def make_kv_memory(
    spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``[num_blocks, *kv_block_shape]``; layer i's is ``[:, i]``.

    Zeros: keys of padding and of stale blocks are read, though never used, and must be finite.
    """
    return torch.zeros((num_blocks, *kv_block_shape(spec, block_size)), dtype=dtype, device=device)


def kv_block_bytes(model: ModelConfig, block_size: int, itemsize: int) -> int:
    return math.prod(kv_block_shape(model.spec, block_size)) * itemsize


def num_kv_blocks(config: EngineConfig, model: ModelConfig, max_model_len: int, itemsize: int) -> int:
    """Blocks in the pool: as many as the settings say or as fit; at least one request must fit whole."""
    block_bytes = kv_block_bytes(model, config.block_size, itemsize)
    # With a window the core keeps one for itself.
    needed = -(-max_model_len // config.block_size) + (model.spec.kv_window > 0)
    if config.num_gpu_blocks_override is not None:
        if config.num_gpu_blocks_override < needed:
            allowed = f"at least {needed}, so that one request of max_model_len {max_model_len} fits"
            raise InvalidArgument("num_gpu_blocks_override", str(config.num_gpu_blocks_override), allowed)
        return config.num_gpu_blocks_override
    budget = DEFAULT_KV_CACHE_BYTES if config.kv_cache_memory_bytes is None else config.kv_cache_memory_bytes
    if budget // block_bytes < needed:
        allowed = (
            f"at least {needed * block_bytes}, so that one request of max_model_len {max_model_len} fits"
            f" ({needed} blocks of {block_bytes} bytes); or set a smaller max_model_len"
        )
        raise InvalidArgument("kv_cache_memory_bytes", str(budget), allowed)
    return budget // block_bytes


def activation_bytes(config: EngineConfig, table: ParameterTable) -> int:
    """Of the largest step."""
    return Activations(
        table.spec,
        table.dtype,
        torch.device("meta"),
        config.max_num_batched_tokens,
        config.max_num_seqs,
        has_outputs=True,
        takes_quantized=table.takes_quantized,
    ).num_bytes


def weight_bytes(table: ParameterTable) -> int:
    """Of a model on a CPU: a tied head is a table for the embedding and another, laid out for the GEMM."""
    return table.num_bytes + (table.embedding().tensors["weight"].num_bytes if table.spec.is_tied else 0)


def rope_bytes(spec: ModelSpec, max_model_len: int) -> int:
    """Of the tables of angles."""
    return len(spec.ropes) * 2 * 4 * max_model_len * (spec.attention.head_dim // 2)


@dataclass(frozen=True, kw_only=True)
class MemoryLedger:
    """Bytes by purpose."""

    weights: int
    kv_blocks: int
    activations: int
    workspace: int = 0  # of kernels and libraries
    graphs: int = 0  # reserved for CUDA graphs
    available: int
    num_blocks: int
    kv_setting: str  # the setting that makes the KV cache as large as it is
    kv_given: int  # its value
    limit: str = "free"  # what `available` is

    @classmethod
    def plan(
        cls, config: EngineConfig, model: ModelConfig, max_model_len: int, num_blocks: int, dtype: torch.dtype
    ) -> MemoryLedger:
        """What the runner is going to take."""
        kv_blocks = num_blocks * kv_block_bytes(model, config.block_size, dtype.itemsize)
        is_count = config.num_gpu_blocks_override is not None
        table = model.parameters(dtype)
        return cls(
            weights=weight_bytes(table) + rope_bytes(model.spec, max_model_len),
            kv_blocks=kv_blocks,
            activations=activation_bytes(config, table),
            available=available_memory(),
            num_blocks=num_blocks,
            kv_setting="num_gpu_blocks_override" if is_count else "kv_cache_memory_bytes",
            kv_given=num_blocks if is_count else kv_blocks,
        )

    def parts(self) -> dict[str, int]:
        names = ("weights", "kv_blocks", "activations", "workspace", "graphs")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> int:
        return self.fixed + self.kv_blocks

    @property
    def fixed(self) -> int:
        """What no setting of the KV cache changes."""
        return self.weights + self.activations + self.workspace + self.graphs

    def check(self) -> None:
        """Refuse what does not fit, naming the setting that changes it most."""
        if self.total <= self.available:
            return
        if self.fixed > self.available:
            raise InvalidArgument(
                "model",
                f"weights of {_mib(self.weights)} and {_mib(self.fixed - self.weights)} for its steps",
                f"at most {_mib(self.available)} together, {self.limit}; choose a smaller model or"
                " max_num_batched_tokens",
            )
        left = self.available - self.fixed
        allowed = left * self.kv_given // self.kv_blocks
        raise InvalidArgument(
            self.kv_setting,
            f"{self.kv_given} ({self.num_blocks} blocks in {_mib(self.kv_blocks)})",
            f"at most {allowed}: {_mib(self.available)} of memory are {self.limit}, weights and activations"
            f" take {_mib(self.fixed)} of them",
        )

    def __str__(self) -> str:
        parts = [
            f"weights {self.weights} B ({_mib(self.weights)})",
            f"KV cache {self.kv_blocks} B ({_mib(self.kv_blocks)}, {self.num_blocks} blocks)",
            f"activations {self.activations} B ({_mib(self.activations)})",
        ]
        if self.workspace:
            parts.append(f"workspace {_mib(self.workspace)}")
        if self.graphs:
            parts.append(f"CUDA graphs {_mib(self.graphs)} (reserve)")
        return f"memory: {', '.join(parts)}; total {_mib(self.total)} of {_mib(self.available)} {self.limit}"


def process_memory() -> int:
    """Bytes of this process in memory."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Bytes that this process may still take: what the machine or its control group has left, if less."""
    return min(_available_on_machine(), _available_in_group())


def _available_on_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _available_in_group() -> int:
    """Limit less usage of the control group (version 2, then 1), page cache not counted as used."""
    for root, limit_name, usage_name, cache_key in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder = Path(root)
        try:
            limit = (folder / limit_name).read_text(encoding="ascii").strip()
            usage = int((folder / usage_name).read_text(encoding="ascii"))
            stat = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
        except (OSError, ValueError):
            continue
        if limit != "max":
            return max(0, int(limit) - usage + int(stat.get(cache_key, 0)))
    return _UNLIMITED


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):.1f} MiB"
