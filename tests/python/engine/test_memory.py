"""The memory ledger: sizes are those that are taken, and what does not fit names its setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.models.config import load_model_config
from quire.models.parameters import Weights
from quire.runner.memory import MemoryLedger, available_memory, num_kv_blocks, weight_bytes
from quire.runner.threads import OWN_CORES, SHARED_CORES


def ledger(**values: Any) -> MemoryLedger:
    sizes = {"weights": 100, "kv_blocks": 50, "activations": 10, "available": 1000, "num_blocks": 5}
    return MemoryLedger(**sizes | {"kv_setting": "kv_cache_memory_bytes", "kv_given": 50} | values)


def test_what_fits_is_accepted() -> None:
    """Up to the last byte."""
    ledger(available=160).check()


def test_cache_that_does_not_fit() -> None:
    """The KV cache's setting, its value, and the largest value that fits."""
    with pytest.raises(InvalidArgument, match=r"kv_cache_memory_bytes: got 50 .*allowed: at most 40:"):
        ledger(available=150).check()
    with pytest.raises(InvalidArgument, match=r"num_gpu_blocks_override: got 5 .*allowed: at most 4:"):
        ledger(available=150, kv_setting="num_gpu_blocks_override", kv_given=5).check()


def test_weights_that_do_not_fit() -> None:
    """No cache setting helps then."""
    with pytest.raises(InvalidArgument, match="model: got weights of"):
        ledger(available=105).check()


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_weights_are_counted_to_the_byte(
    llama_folder: Callable[..., Path], biases: bool, is_tied: bool
) -> None:
    """The ledger's figure is the size of all weights that are loaded; a tied head is laid out for its GEMM
    beside the embedding."""
    settings = {"attention_bias": biases, "mlp_bias": biases, "tie_word_embeddings": is_tied}
    table = load_model_config(llama_folder(**settings)).parameters(torch.bfloat16)
    loaded = Weights(table, torch.device("cpu")).places()
    head = loaded["model.embed_tokens.weight"].views[0].nbytes if is_tied else 0
    assert sum(view.nbytes for place in loaded.values() for view in place.views) + head == weight_bytes(table)


def test_number_of_blocks(llama_folder: Callable[..., Path]) -> None:
    """As many as fit into the budget: 3 layers x 2 x 16 tokens x 2 heads x 32 x 4 bytes = 24,576 each."""
    model = load_model_config(llama_folder())
    config = EngineConfig(model="x", kv_cache_memory_bytes=24576 * 10 + 5)
    assert num_kv_blocks(config, model, 100, 4) == 10
    assert num_kv_blocks(EngineConfig(model="x", num_gpu_blocks_override=7), model, 100, 4) == 7
    with pytest.raises(InvalidArgument, match="kv_cache_memory_bytes: got 245765; allowed: at least 270336"):
        num_kv_blocks(config, model, 161, 4)


def test_available_memory_is_plausible() -> None:
    """More than nothing, less than a petabyte."""
    assert 1 << 20 < available_memory() < 1 << 50


def test_threads_follow_the_work() -> None:
    """Beside a server one thread for the embedded model's decode steps; all for prompts and large weights."""
    embedded, large = 256 * 1536, 4096 * 4096
    assert [1, 1] == [SHARED_CORES.num_gemm_threads(n, embedded, 8) for n in (1, 16)]
    assert [1, 8] == [OWN_CORES.num_gemm_threads(n, embedded, 8) for n in (1, 16)]
    for policy in (SHARED_CORES, OWN_CORES):
        assert policy.num_gemm_threads(512, embedded, 8) == 8
        assert policy.num_gemm_threads(1, large, 8) == 8
