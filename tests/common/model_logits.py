"""The logits of a model folder on the CPU, at all positions of prompts, through loader and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from quire import ops
from quire.config import EngineConfig
from quire.models.activations import Activations
from quire.models.checkpoint import load_model_weights
from quire.models.config import load_model_config
from quire.models.decoder import Decoder, paged_attentions
from quire.models.parameters import Weights
from quire.runner.memory import make_kv_memory
from torch import Tensor

CPU = torch.device("cpu")


@torch.inference_mode()
def logits_of(folder: Path, prompts: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
    """[len(prompt), vocabulary] float32 for each prompt. dtype: of activations."""
    model = load_model_config(folder)
    weights = Weights(model.parameters(dtype), CPU)
    load_model_weights(EngineConfig(model=str(folder)), model, weights)
    longest = max(map(len, prompts))
    decoder = Decoder(weights, CPU, longest)
    buffers = Activations(model.spec, dtype, CPU, longest, longest, has_outputs=False)
    memory = make_kv_memory(model.spec, 1, longest, dtype, CPU)
    caches = [ops.KVCache(layer) for layer in memory.unbind(1)]
    attentions = paged_attentions(model.spec, CPU)

    def run(prompt: Sequence[int]) -> Tensor:
        places = torch.arange(len(prompt))
        batch = ops.BatchInfo(
            positions=places.int(),
            slot_mapping=places,
            query_start_loc=torch.tensor([0, len(prompt)], dtype=torch.int32),
            seq_lens=torch.tensor([len(prompt)], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            block_table_rows=torch.zeros(1, dtype=torch.int32),
        )
        ids = torch.tensor(prompt, dtype=torch.int32)
        return decoder.logits(decoder.attend(ids, batch, attentions, caches, buffers)).float()

    return [run(prompt) for prompt in prompts]


def relative_norm(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, over all positions of all prompts."""
    got, wanted = torch.cat([*logits]), torch.cat([*expected])
    return float((got - wanted).norm() / wanted.norm())


def mean_kl(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """KL divergence of the next token's distribution from what is expected: nats, mean of all positions."""
    got, wanted = (torch.cat([*each]).log_softmax(-1) for each in (logits, expected))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())
