"""Executes scheduled batches: KV cache, forward pass, sampling. Knows nothing of requests and their order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from quire import _core, ops
from quire.config import EngineConfig
from quire.models.activations import Activations
from quire.models.checkpoint import load_model_weights
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder, paged_attentions
from quire.models.parameters import Weights
from quire.runner.device import CPU
from quire.runner.logit_adjustments import SamplerTables
from quire.runner.memory import make_kv_memory
from quire.runner.sampled import PROMPT_PIECE, Logprobs, Sampled
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


def _arrays(logprobs: tuple[Tensor, ...]) -> Logprobs:
    token_logprobs, token_ranks, top_ids, top_logprobs = (tensor.numpy() for tensor in logprobs)
    return token_logprobs, token_ranks, top_ids, top_logprobs


class ModelRunner:
    """One model on one CPU. `launch` and `collect` are the calls of a step (`engine.loop.Runner`). All is
    done in `launch`: more than one batch in flight is no faster."""

    max_batches_in_flight = 1

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
        weights = Weights(model.parameters(dtype), CPU)
        load_model_weights(config, model, weights)
        self.model = Decoder(weights, CPU, max_model_len)
        self._attentions = paged_attentions(model.spec, CPU)
        spec = model.spec
        self.activations = Activations(
            spec, dtype, CPU, config.max_num_batched_tokens, config.max_num_seqs, has_outputs=False
        )
        self._kv_memory = make_kv_memory(spec, num_blocks, config.block_size, dtype, CPU)
        self._caches = [ops.KVCache(layer) for layer in self._kv_memory.unbind(1)]
        self._last_token_ids = np.zeros(config.max_num_seqs, dtype=np.int32)  # by row of the block tables
        self._launched: deque[Sampled] = deque()
        self._prompt_piece = min(PROMPT_PIECE, config.max_num_seqs)  # no more logits than a step samples from
        # Made when a request needs them: pages of rows that no such request had are never touched.
        self._make_tables = partial(SamplerTables, config.max_num_seqs, spec.vocab_size, CPU)
        self._tables: SamplerTables | None = None
        adjustment_columns = _core.BatchLayout.for_adjustments(config.max_num_seqs).arrays
        self._adjustment_columns = [name for name in adjustment_columns if name != "num_logprobs"]

    def launch(self, batch: _core.Batch) -> None:
        """Compute the batch's tokens, and sample."""
        self._launched.append(self._run(batch))

    def collect(self) -> Sampled:
        """What the oldest launched batch gave."""
        return self._launched.popleft()

    def discard(self) -> None:
        """Nobody will collect what is launched."""
        self._launched.clear()

    def _token_ids(self, batch: _core.Batch) -> NDArray[np.int32]:
        """The batch's, with those that the core did not know yet."""
        token_ids = batch.token_ids
        if self.max_batches_in_flight > 1:
            # A row that had no finite logits left no id; what comes of it is dropped.
            last = np.maximum(self._last_token_ids, 0)
            token_ids = np.where(token_ids < 0, last[np.maximum(~token_ids, 0)], token_ids)
        return token_ids

    @torch.inference_mode()
    def _run(self, batch: _core.Batch) -> Sampled:
        view = torch.from_numpy
        num_tokens = batch.num_tokens
        if len(batch.block_copies):
            ops.copy_blocks(self._kv_memory, view(batch.block_copies))
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
        prompt_logprobs = logprobs = None
        try:
            token_ids = view(self._token_ids(batch))
            rows = self.model.attend(token_ids, info, self._attentions, self._caches, self.activations)
            if batch.num_prompt_rows:
                prompt_logprobs = self._prompt_logprobs(batch)
            logits = self.model.logits(rows if picked is None else self.activations.pick(picked))
        finally:
            torch.set_num_threads(self.num_threads)
        sampled = torch.empty(num_sampled, dtype=torch.int32)
        if num_sampled:
            self._sample(batch, logits, sampled)
        if batch.has_logprobs:
            logprobs = _arrays(ops.logprobs(logits, token_ids=sampled, num_logprobs=view(batch.num_logprobs)))
        self._last_token_ids[batch.sample_rows] = sampled.numpy()
        return Sampled(sampled.numpy(), logprobs, prompt_logprobs)

    def _prompt_logprobs(self, batch: _core.Batch) -> Logprobs:
        """Logprobs of the batch's prompt rows, a piece at a time: logits of all of them could take
        gigabytes."""
        pieces = []
        for begin in range(0, batch.num_prompt_rows, self._prompt_piece):
            piece = slice(begin, begin + self._prompt_piece)
            chosen = self.activations.pick(torch.from_numpy(batch.prompt_token_idx[piece]))
            pieces.append(
                ops.logprobs(
                    self.model.logits(chosen),
                    token_ids=torch.from_numpy(batch.prompt_next_ids[piece]),
                    num_logprobs=torch.from_numpy(batch.prompt_num_logprobs[piece]),
                )
            )
        return _arrays(tuple(map(torch.cat, zip(*pieces, strict=True))))

    def _adjustment_arguments(self, batch: _core.Batch) -> dict[str, Tensor]:
        """What `ops.sample` takes for requests with masks, penalties, biases and the like. Writes what the
        batch brings for the tables."""
        if not (batch.has_masks or batch.has_adjustments):
            return {}
        if self._tables is None:
            self._tables = self._make_tables()

        def columns(names: Iterable[str]) -> dict[str, Tensor]:
            return {name: torch.from_numpy(getattr(batch, name)) for name in names}

        self._tables.update(columns(_core.BatchLayout.for_tables(batch).arrays))
        arguments = columns(["mask_rows"]) | {"token_masks": self._tables.token_masks}
        if batch.has_adjustments:
            arguments |= columns([*self._adjustment_columns, "sample_rows"])
            arguments["token_counts"] = self._tables.token_counts
        return arguments

    def _sample(self, batch: _core.Batch, logits: Tensor, out: Tensor) -> None:
        """One id per row of `logits` into `out`. A row that is not finite gets -1, with which the core ends
        that request alone."""
        view = torch.from_numpy
        out.fill_(-1)
        adjustment_arguments = self._adjustment_arguments(batch)
        with suppress(_core.InvalidArgument):
            ops.sample(
                logits,
                temperature=view(batch.temperature),
                top_k=view(batch.top_k),
                top_p=view(batch.top_p),
                seed=view(batch.seed),
                output_idx=view(batch.output_idx),
                out=out,
                **adjustment_arguments,
            )
