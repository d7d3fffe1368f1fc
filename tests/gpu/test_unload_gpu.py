"""Two models on one GPU: each has its share whatever the other takes, and an unload returns its memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from quire.triton.model_copy import add_model
from quire.triton.server import TritonServer

pytestmark = pytest.mark.gpu

ROUNDS = 20
# What the driver keeps for good once a second process has used the GPU; seen: 2 MiB.
DRIVER_BYTES = 8 << 20
PACKAGED = Path(__file__).parents[2] / "model_repository"
QUESTION = {"text_input": "def f(", "max_tokens": 8, "temperature": 0}


def free_bytes() -> int:
    return torch.cuda.mem_get_info()[0]


def settled_free_bytes(at_least: int) -> int:
    """The driver returns a dead process' memory a moment later, and not all at once."""
    deadline = time.monotonic() + 10
    before = -1
    while ((free := free_bytes()) < at_least or free != before) and time.monotonic() < deadline:
        before = free
        time.sleep(0.5)
    return free


def test_unload_returns_device_memory(tmp_path: Path) -> None:
    """Beside a model that stays, 20 rounds of load, answer and unload end at the same figure of free memory,
    and the cache has the same size in each."""
    pytest.importorskip("pytriton", reason="brings the tritonserver that this test runs")
    settings = {"gpu_memory_utilization": 0.4, "max_num_seqs": 8, "max_num_batched_tokens": 256}
    for name in ("stays", "goes"):
        add_model(PACKAGED, tmp_path / "models", "quire-8m", name, settings)
    with TritonServer(tmp_path / "models", models=["stays"], start_timeout=300) as server:
        before = free_bytes()
        figures = []
        for _ in range(ROUNDS):
            server.load_model("goes")
            status, answer = server.generate("goes", QUESTION)
            assert status == 200, answer
            assert free_bytes() < before
            server.unload_model("goes", with_steps=True)
            figures.append(settled_free_bytes(figures[0] if figures else before - DRIVER_BYTES))
        assert len(set(figures)) == 1, figures
        assert figures[0] >= before - DRIVER_BYTES
        assert server.generate("stays", QUESTION)[0] == 200
        sizes = re.findall(r"model '(\w+)-generation': .*?(\d+) blocks of", server.log)
    assert [name for name, _ in sizes] == ["stays"] + ["goes"] * ROUNDS
    assert len({size for name, size in sizes if name == "goes"}) == 1
    kept, *_, last = (int(size) for _, size in sizes)
    assert abs(kept - last) < kept / 10
