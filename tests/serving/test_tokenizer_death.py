"""The repository as it is, with its tokenizers' processes killed and its files changed under it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from client import generate, metrics, wait_until
from processes import children
from quire.triton.server import TritonServer

MODELS = ("ensemble", "ensemble_unary", "ensemble_trtllm", "ensemble_trtllm_unary")
BODY = {"text_input": "def fibonacci(n):", "temperature": 0, "max_tokens": 8}


def tokenizer_pids(server: TritonServer) -> list[int]:
    """The server's children that tokenize."""
    return [pid for pid, line in children(server.pid).items() if "tokenizer_worker" in line]


def test_what_a_load_has_read_holds(make_repository: Callable[..., Path], tmp_path: Path) -> None:
    """Settings, vocabulary and limit changed after the load, then all processes killed: the same ids as ever,
    from every model, and what was refused still is."""
    model = tmp_path / "model"
    shutil.copytree(Path(__file__).parents[2] / "models" / "quire-8m", model)
    repository = make_repository(num_gpu_blocks_override=256, model=str(model), max_model_len=512)
    with TritonServer(repository) as server:

        def answers() -> list[object]:
            ids = server.generate("tokenizer", BODY)[1]["input_ids"]
            return [ids, *(generate(server.http_url, BODY, name)["text_output"] for name in MODELS)]

        before = answers()
        settings = repository / "generation" / "1" / "model.json"
        settings.write_text(json.dumps({"model": str(model), "max_model_len": 8}))
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = dict(zip(vocabulary, reversed(vocabulary.values()), strict=True))
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        (model / "config.json").write_text("{")

        pids = tokenizer_pids(server)
        assert len(pids) == 3
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for _ in range(5):
            assert answers() == before
        wait_until(lambda: len(tokenizer_pids(server)) == 3, 120, "all processes are replaced")
        assert not {*pids} & {*tokenizer_pids(server)}
        wait_until(lambda: metrics(server.metrics_url)["quire:tokenizer_restarts_total"] == 3, 120, "counted")
        status, answer = server.generate("ensemble", {"text_input": "x = 1\n" * 600})
        assert status == 400
        assert "allowed: at most 511 tokens (max_model_len - 1)" in answer["error"]


def test_long_prompts_hold_nobody(server: TritonServer) -> None:
    """Prompts of megabytes that cannot fit are refused by their size, by every way to say them."""
    text = "def f(x):\n    return x\n" * 90_000
    for name, body in (
        ("ensemble", {"text_input": text}),
        ("ensemble_unary", {"text_input": text}),
        ("ensemble_trtllm", {"text_input": text, "max_tokens": 1}),
        ("ensemble_unary", {"text_input": ["a", text]}),
    ):
        status, answer = server.generate(name, body)
        assert status == 400
        assert "bytes" in answer["error"]
