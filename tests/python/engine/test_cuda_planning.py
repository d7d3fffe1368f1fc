"""What is decided before anything is on a GPU: the shapes of graphs, the memory ledger, the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.models.config import load_model_config
from quire.models.parameters import Weights
from quire.runner.cuda_memory import CudaMemory, plan
from quire.runner.device import resolve_device
from quire.runner.dtype import resolve_cuda_dtype
from quire.runner.memory import MemoryLedger, kv_block_bytes
from quire.runner.step_shapes import StepShape, StepShapes

GIB = 1 << 30
FREE = 79 * GIB + GIB // 2  # of 80, beside the process' own context


@pytest.mark.parametrize(
    ("max_num_seqs", "max_num_tokens"), [(256, 2304), (1, 16), (7, 100), (1024, 8192), (64, 32)]
)
def test_every_step_fits_a_captured_shape(max_num_seqs: int, max_num_tokens: int) -> None:
    """The shape is captured, large enough, and wastes less than half of a step of more than 16 tokens."""
    shapes = StepShapes(max_num_seqs, max_num_tokens)
    captured = set(shapes.all())
    assert len(captured) == len(shapes.all())
    for num_tokens in range(1, max_num_tokens + 1):
        for num_sampled in {0, 1, 16, 17, 64, 65, num_tokens, max_num_seqs}:
            if num_sampled > min(num_tokens, max_num_seqs):
                continue
            shape = shapes.fit(num_tokens, num_sampled)
            assert shape in captured
            assert shape.num_tokens >= num_tokens
            assert shape.num_sampled >= num_sampled
            assert shape.is_decode == (num_tokens == num_sampled)
            assert shape.num_seqs == (shape.num_tokens if shape.is_decode else max_num_seqs)
            assert num_tokens <= 16 or shape.num_tokens < 2 * num_tokens


def test_decode_steps_of_few_requests_are_not_padded() -> None:
    """One, two and four requests get graphs of their own."""
    shapes = StepShapes(256, 2048)
    assert [shapes.fit(n, n) for n in (1, 2, 4)] == [StepShape(n, n, n, True) for n in (1, 2, 4)]
    assert shapes.fit(3, 3).num_tokens == 4


def ledger(folder: Path, *, max_model_len: int = 128, free: int = FREE, **settings: Any) -> MemoryLedger:
    config = EngineConfig(model="x", **settings)
    return plan(
        config,
        load_model_config(folder),
        max_model_len=max_model_len,
        dtype=torch.bfloat16,
        kv_dtype=torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else torch.bfloat16,
        shapes=StepShapes(config.max_num_seqs, config.max_num_batched_tokens),
        memory=CudaMemory(total=80 * GIB, free=free),
        workspace=1 << 20,
    )


def test_cache_takes_what_is_left(llama_folder: Callable[..., Path]) -> None:
    """All that gpu_memory_utilization allows beside the process' own context, to the last block."""
    folder = llama_folder()
    model = load_model_config(folder)
    planned = ledger(folder, gpu_memory_utilization=0.75)
    assert planned.available == 60 * GIB - GIB // 2
    assert 0 <= planned.available - planned.total < kv_block_bytes(model, 16, 2)
    planned.check()
    assert ledger(folder, gpu_memory_utilization=0.75, kv_cache_dtype="fp8").num_blocks == pytest.approx(
        2 * planned.num_blocks, abs=1
    )
    eager = ledger(folder, gpu_memory_utilization=0.75, enforce_eager=True)
    assert eager.graphs == 0 < planned.graphs
    assert eager.num_blocks > planned.num_blocks


def test_a_share_is_an_engine_s_own(llama_folder: Callable[..., Path]) -> None:
    """What other engines have does not make it smaller, but for the space of a context; where they have left
    too little it is refused, unless the size of the cache is given."""
    folder = llama_folder()
    for taken in (0.0, 0.25, 0.5):
        free = int((1 - taken) * 80 * GIB) - GIB // 2
        planned = ledger(folder, gpu_memory_utilization=0.5, free=free)
        assert 39 * GIB <= planned.available <= 40 * GIB
        planned.check()
    refused = r"gpu_memory_utilization: got 0\.5; allowed: at most 0\.25: others have left 20480 of 81920 MiB"
    with pytest.raises(InvalidArgument, match=refused):
        ledger(folder, gpu_memory_utilization=0.5, free=20 * GIB)
    ledger(folder, kv_cache_memory_bytes=GIB, free=20 * GIB).check()
    with pytest.raises(InvalidArgument, match=r"kv_cache_memory_bytes: got .*, 10240 MiB of them free"):
        ledger(folder, kv_cache_memory_bytes=20 * GIB, free=10 * GIB).check()


def test_what_does_not_fit_names_the_setting(llama_folder: Callable[..., Path]) -> None:
    """A context too long for the memory, a pool too large for it, a model too large for it."""
    folder = llama_folder(max_position_embeddings=1 << 22)
    with pytest.raises(InvalidArgument, match=r"max_model_len: got 4194304; allowed: at most \d+: weights"):
        ledger(folder, max_model_len=1 << 22, gpu_memory_utilization=0.026)
    with pytest.raises(
        InvalidArgument, match=r"num_gpu_blocks_override: got 9000000 .*gpu_memory_utilization 0.9"
    ):
        ledger(folder, num_gpu_blocks_override=9000000).check()
    with pytest.raises(InvalidArgument, match=r"model: got weights of .*gpu_memory_utilization 0.006 of"):
        ledger(folder, gpu_memory_utilization=0.006).check()


def test_activations_are_counted_to_the_byte(llama_folder: Callable[..., Path]) -> None:
    """The ledger's figures are the sizes of what is allocated."""
    folder = llama_folder(tie_word_embeddings=True)
    spec = load_model_config(folder).spec
    planned = ledger(folder, max_num_batched_tokens=96, max_num_seqs=8)
    # residual, hidden, added; qkv; attention; gate_up; mlp; then what is of sampled tokens alone
    per_token = 3 * 64 + (4 + 2 * 2) * 32 + 4 * 32 + 2 * 96 + 96
    assert planned.activations == 2 * (96 * per_token + 8 * (4 * 32 + 64 + spec.vocab_size))
    loaded = Weights(load_model_config(folder).parameters(torch.bfloat16), torch.device("cpu")).places()
    table_of_angles = 2 * 4 * 128 * 16
    assert (
        planned.weights
        == sum(view.nbytes for place in loaded.values() for view in place.views) + table_of_angles
    )


def test_device_that_is_not_there() -> None:
    """Named with what is missing; what only a GPU can do is refused on a CPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert resolve_device(EngineConfig(model="x")).type == "cpu"
    with pytest.raises(InvalidArgument, match="device: got cuda; allowed: cpu, or auto; missing here: a GPU"):
        resolve_device(EngineConfig(model="x", device="cuda"))
    for setting in ({"kv_cache_dtype": "fp8"}, {"batch_invariant": True}):
        with pytest.raises(InvalidArgument, match=f"{next(iter(setting))}: got .* on a CPU"):
            resolve_device(EngineConfig(model="x", **setting))


def test_types_on_a_gpu(llama_folder: Callable[..., Path]) -> None:
    """16 bits, the checkpoint's where it has such."""
    model = replace(load_model_config(llama_folder()), checkpoint_dtype="float16")
    assert resolve_cuda_dtype(EngineConfig(model="x"), model) is torch.float16
    assert resolve_cuda_dtype(EngineConfig(model="x", dtype="bfloat16"), model) is torch.bfloat16
    with pytest.raises(InvalidArgument, match="dtype: got float32; allowed: auto, bfloat16 or float16"):
        resolve_cuda_dtype(EngineConfig(model="x", dtype="float32"), model)
