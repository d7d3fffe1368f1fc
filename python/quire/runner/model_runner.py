"""Executes scheduled batches: KV cache, forward pass, sampling. Knows nothing of requests and their order."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quire import _core, ops
from quire.config import EngineConfig
from quire.models.checkpoint import load_model_weights
from quire.models.config import ModelConfig
from quire.models.llama import Activations, Llama
from quire.runner.threads import ThreadPolicy, num_usable_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _allow_read_only_views() -> None:
    """Batches are read-only views of the core's memory. torch has no such tensors and warns of it, once per
    process: let it, here, where nobody is told. Nothing writes to these tensors."""
    array = np.zeros(1, dtype=np.int32)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(array)


class ModelRunner:
    """One model on one CPU. `execute` is the only call of a step."""

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        threads: ThreadPolicy,
        *,
        dtype: torch.dtype,
        num_blocks: int,
        max_model_len: int,
    ) -> None:
        _allow_read_only_views()
        self._threads = threads
        self.num_threads = config.num_threads or num_usable_cores()
        torch.set_num_threads(self.num_threads)
        ops.set_num_threads(self.num_threads)
        self.model = Llama(model, dtype, max_model_len)
        load_model_weights(config, model, self.model.destinations())
        self.model.pack()
        self.activations = Activations(model, dtype, config.max_num_batched_tokens, config.max_num_seqs)
        cache_shape = (num_blocks, config.block_size, model.num_kv_heads, model.head_dim)
        self.caches = [
            ops.KVCache(torch.zeros(cache_shape, dtype=dtype), torch.zeros(cache_shape, dtype=dtype))
            for _ in range(model.num_layers)
        ]
        self._sampled = torch.zeros(config.max_num_seqs, dtype=torch.int32)

    @torch.inference_mode()
    def execute(self, batch: _core.Batch) -> NDArray[np.int32]:
        """Compute the batch's tokens; the new id of each sampled request: int32 ``[num_sampled]``, valid
        until the next call."""
        view = torch.from_numpy
        num_tokens = batch.num_tokens
        info = ops.BatchInfo(
            positions=view(batch.positions),
            slot_mapping=view(batch.slot_mapping),
            query_start_loc=view(batch.query_start_loc),
            seq_lens=view(batch.seq_lens),
            block_tables=view(batch.block_tables),
            block_table_rows=view(batch.block_table_rows),
        )
        num_sampled = batch.num_sampled
        # One token per request, all sampled: a decode step. Nothing to pick then.
        is_decode = num_sampled == num_tokens
        picked = None if is_decode else view(batch.sample_token_idx)
        num_weights = self.model.num_largest_weights
        torch.set_num_threads(self._threads.num_gemm_threads(num_tokens, num_weights, self.num_threads))
        try:
            logits = self.model.forward(view(batch.token_ids), info, picked, self.caches, self.activations)
        finally:
            torch.set_num_threads(self.num_threads)
        sampled = self._sampled[:num_sampled]
        if num_sampled:
            self._sample(batch, logits, sampled)
        return sampled.numpy()

    @staticmethod
    def _sample(batch: _core.Batch, logits: Tensor, out: Tensor) -> None:
        """One id per row of `logits` into `out`. A row that is not finite gets -1, with which the core ends
        that request alone."""
        view = torch.from_numpy
        out.fill_(-1)
        with suppress(_core.InvalidArgument):
            ops.sample(
                logits,
                temperature=view(batch.temperature),
                top_k=view(batch.top_k),
                top_p=view(batch.top_p),
                seed=view(batch.seed),
                output_idx=view(batch.output_idx),
                mask_offsets=view(batch.mask_offsets),
                mask_ids=view(batch.mask_ids),
                out=out,
            )
