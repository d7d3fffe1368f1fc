"""Copies of KV blocks, and changes of the block tables that lie on a GPU."""

from __future__ import annotations

from torch import Tensor

from quire._tensor_checks import has_cuda_kernels, stream_of

if has_cuda_kernels():
    from quire import _cuda


def copy_blocks(kv_memory: Tensor, copies: Tensor) -> None:
    """Copy whole blocks in all layers: kv_memory `[num_blocks, ...]`; copies `[2 * num_copies]` int32, pairs
    of source and destination. A block outside the memory is skipped on a GPU, an error on the CPU."""
    if not kv_memory.is_cuda:
        sources, destinations = copies.view(-1, 2).unbind(1)
        kv_memory[destinations] = kv_memory[sources]
        return
    _cuda.copy_blocks(
        copies=copies.data_ptr(),
        num_copies=copies.numel() // 2,
        cache=kv_memory.data_ptr(),
        num_blocks=kv_memory.size(0),
        block_bytes=kv_memory.stride(0) * kv_memory.itemsize,
        stream=stream_of(kv_memory),
    )


def update_block_tables(block_tables: Tensor, updates: Tensor, num_updates: Tensor) -> None:
    """Bring a GPU's copy of the block tables, `[max_num_seqs, max_blocks_per_request]`, up to date: updates,
    int32, are pairs of flat index and block id, of which the first `num_updates` count, an int32 on the
    GPU."""
    _cuda.update_block_tables(
        updates=updates.data_ptr(),
        num_updates=num_updates.data_ptr(),
        max_updates=updates.numel() // 2,
        block_tables=block_tables.data_ptr(),
        num_entries=block_tables.numel(),
        stream=stream_of(block_tables),
    )
