"""Executes scheduled batches on one GPU: KV cache, forward pass, sampling, as one captured graph per step.

The host stays one step ahead: while the GPU computes a batch, the next one is scheduled, packed and launched.
Sampled ids stay on the device and feed the next step; the host learns them one step late. Per step there is
one copy to the device, one graph, one copy back, and no synchronisation but the wait for those ids.

Steps are plain or full. A full step samples with penalties, biases and min_p, and gives logprobs; it is for
batches in which a request asks for such. What its sampler reads beside takes another copy to the device. A
plain step knows of tokens that may not be sampled, and nothing else of it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from quire import _core, ops
from quire.config import EngineConfig
from quire.models.activations import Activations
from quire.models.checkpoint import load_model_weights
from quire.models.config import ModelConfig
from quire.models.decoder import Decoder, paged_attentions
from quire.models.parameters import Weights
from quire.runner.cuda_logit_adjustments import CudaLogitAdjustments
from quire.runner.cuda_logprobs import PromptLogprobs
from quire.runner.logprob_rows import LogprobRows
from quire.runner.memory import make_kv_memory
from quire.runner.sampled import Sampled
from quire.runner.step_buffers import StepBuffers
from quire.runner.step_graphs import StepGraphs
from quire.runner.step_shapes import StepShape, StepShapes

# Keys per piece of a request's context when results may not depend on the batch.
_INVARIANT_SPLIT_KEYS = 1024


def make_attentions(
    config: EngineConfig, model: ModelConfig, max_model_len: int, device: torch.device
) -> dict[int | None, ops.PagedAttention]:
    """The attentions of all layers, with their workspaces. Raises ValueError for sizes that they do not
    have."""
    return paged_attentions(
        model.spec,
        device,
        max_num_seqs=config.max_num_seqs,
        max_num_tokens=config.max_num_batched_tokens,
        max_seq_len=max_model_len,
        split_keys=_INVARIANT_SPLIT_KEYS if config.batch_invariant else 0,
    )


class _BatchInFlight(NamedTuple):
    copy: int  # of the buffers
    num_sampled: int
    num_rows: int  # of a full step's LogprobRows; 0: a plain step
    has_logprobs: bool
    num_prompt_rows: int


class CudaRunner:
    """One model on one GPU. `launch` and `collect` are the only calls of a step."""

    max_batches_in_flight = 2

    def __init__(
        self,
        config: EngineConfig,
        core_config: _core.EngineConfig,
        model: ModelConfig,
        attentions: dict[int | None, ops.PagedAttention],
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._attentions = attentions
        weights = Weights(model.parameters(dtype, device), device)
        load_model_weights(config, model, weights)
        self._model = Decoder(
            weights, device, core_config.max_model_len, batch_invariant=config.batch_invariant
        )
        torch.cuda.empty_cache()  # what conversions of weights took is for the KV cache
        spec, max_num_seqs = model.spec, config.max_num_seqs
        self._activations = Activations(
            spec,
            dtype,
            device,
            config.max_num_batched_tokens,
            max_num_seqs,
            has_outputs=True,
            takes_quantized=weights.table.takes_quantized,
        )
        self._kv_memory = make_kv_memory(spec, core_config.num_blocks, config.block_size, kv_dtype, device)
        scales = weights.kv_scales() if kv_dtype.itemsize == 1 else [(1.0, 1.0)] * spec.num_layers
        self._caches = [
            ops.KVCache(layer, k_scale=k_scale, v_scale=v_scale)
            for layer, (k_scale, v_scale) in zip(self._kv_memory.unbind(1), scales, strict=True)
        ]
        self._buffers = StepBuffers(core_config, device, num_copies=self.max_batches_in_flight)
        self._block_tables = torch.zeros(
            (max_num_seqs, -(-core_config.max_model_len // config.block_size)),
            dtype=torch.int32,
            device=device,
        )
        # One more: where padding rows of a graph leave their ids.
        self._last_token_ids = torch.zeros(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._sampled = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._sampled_host = [
            torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=True)
            for _ in range(self.max_batches_in_flight)
        ]
        self._done = [torch.cuda.Event() for _ in range(self.max_batches_in_flight)]  # type: ignore[no-untyped-call]
        self._in_flight: deque[_BatchInFlight] = deque()
        self._next_copy = 0
        # For full steps.
        self._adjustments = CudaLogitAdjustments(
            max_num_seqs, spec.vocab_size, device, self.max_batches_in_flight
        )
        self._sampled_rows = LogprobRows(max_num_seqs, device, self.max_batches_in_flight)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._make_prompt_logprobs = partial(
            PromptLogprobs, config.max_num_batched_tokens, device, self.max_batches_in_flight
        )
        self._prompt_logprobs: PromptLogprobs | None = None  # made when a request asks for some
        self._shapes = StepShapes(max_num_seqs, config.max_num_batched_tokens)
        self._graphs: StepGraphs | None = None
        torch.cuda.synchronize(device)  # what was filled on the default stream is there
        if not config.enforce_eager:
            self._graphs = StepGraphs(self._compute)
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                self._graphs.capture_plain(self._shapes, self._buffers.fill_with_padding)

    @torch.inference_mode()
    def launch(self, batch: _core.Batch) -> None:
        """Start computing a batch. At most `max_batches_in_flight` may be in flight."""
        if self._graphs:
            shape = self._shapes.fit(batch.num_tokens, batch.num_sampled)
        else:
            # A part of a prompt samples nothing: then a padding row, whose id is not read.
            num_sampled = max(1, batch.num_sampled)
            is_decode = batch.num_tokens == batch.num_sampled
            shape = StepShape(batch.num_tokens, batch.num_seqs, num_sampled, is_decode)
        copy = self._next_copy
        is_full = batch.has_logprobs or batch.has_adjustments
        with torch.cuda.stream(self._stream):
            self._buffers.upload(copy, batch, shape)
            if is_full:
                self._adjustments.upload(copy, batch, shape.num_sampled)
            self._adjustments.write_tables(copy, batch)
            if num_copies := len(batch.block_copies):  # rare, so outside of the graphs
                copies = self._buffers.arrays(shape).block_copies
                ops.copy_blocks(self._kv_memory, copies[: 2 * num_copies])
            if self._graphs:
                self._graphs.replay(shape, is_full=is_full)
            else:
                self._compute(shape, is_full)
            if is_full:
                self._sampled_rows.download(copy, shape.num_sampled)
            else:
                self._sampled_host[copy].copy_(self._sampled, non_blocking=True)
            if batch.num_prompt_rows:
                if self._prompt_logprobs is None:
                    self._prompt_logprobs = self._make_prompt_logprobs()
                self._prompt_logprobs.launch(copy, batch, self._model, self._activations)
            self._done[copy].record()
        num_rows = shape.num_sampled if is_full else 0
        self._in_flight.append(
            _BatchInFlight(copy, batch.num_sampled, num_rows, batch.has_logprobs, batch.num_prompt_rows)
        )
        self._next_copy = (copy + 1) % self.max_batches_in_flight

    def collect(self) -> Sampled:
        """Wait for the oldest batch in flight. What it gave is valid until the next launch."""
        copy, num_sampled, num_rows, has_logprobs, num_prompt_rows = self._in_flight.popleft()
        self._done[copy].synchronize()
        logprobs = prompt_logprobs = None
        if num_rows:
            ids, logprobs = self._sampled_rows.host(copy, num_rows, num_sampled)
        else:
            ids = self._sampled_host[copy].numpy()[:num_sampled]
        if num_prompt_rows:
            assert self._prompt_logprobs is not None
            prompt_logprobs = self._prompt_logprobs.host(copy, num_prompt_rows)
        return Sampled(ids, logprobs if has_logprobs else None, prompt_logprobs)

    def discard(self) -> None:
        """Nobody will collect what is launched. Returns when none of it runs any more."""
        self._in_flight.clear()
        self._stream.synchronize()

    @property
    def num_graph_replays(self) -> int:
        return self._graphs.num_replays if self._graphs else 0

    @property
    def num_graph_captures(self) -> int:
        return self._graphs.num_captures if self._graphs else 0

    def logits(self, num_rows: int) -> Tensor:
        """The logits of the last computed step, ``[num_rows, vocab_size]``, for tests."""
        self._stream.synchronize()
        logits = self._activations.rows(num_rows).logits
        assert logits is not None
        return logits.clone()

    def _compute(self, shape: StepShape, is_full: bool) -> None:
        """Launch a step's kernels on the current stream."""
        step = self._buffers.arrays(shape)
        batch = ops.BatchInfo(
            positions=step.positions,
            slot_mapping=step.slot_mapping,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            block_tables=self._block_tables,
            block_table_rows=step.block_table_rows,
            num_seqs=step.header,
            max_query_len=1 if shape.is_decode else shape.num_tokens,
            places_are_settled=True,  # a copy before the step wrote them
        )
        ops.update_block_tables(self._block_tables, step.block_table_updates, step.header[3:])
        for attention in self._attentions.values():
            attention.plan(batch)
        rows = self._model.attend(
            step.token_ids,
            batch,
            self._attentions,
            self._caches,
            self._activations,
            last_token_ids=self._last_token_ids,
        )
        if not shape.is_decode:  # nothing reads the other tokens from here on
            rows = self._activations.pick(step.sample_token_idx)
        logits = self._model.logits(rows)
        names = ("temperature", "top_k", "top_p", "seed", "output_idx", "sample_rows", "mask_rows")
        arguments = {name: getattr(step, name) for name in names}
        arguments |= {"last_token_ids": self._last_token_ids, "token_masks": self._adjustments.token_masks}
        if not is_full:
            ops.sample(logits, **arguments, out=self._sampled[: shape.num_sampled])
            return
        ids, *out = self._sampled_rows.on_device(shape.num_sampled)
        arguments |= self._adjustments.arguments(shape.num_sampled)
        num_logprobs = arguments.pop("num_logprobs")
        ops.sample(logits, **arguments, out=ids)
        ops.logprobs(logits, token_ids=ids, num_logprobs=num_logprobs, out=out)
