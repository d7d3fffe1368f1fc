"""People edit the repository: the ensemble's config changes and reloads, settings change, models unload."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from client import generate, generate_stream
from quire.triton.server import TritonServer

pytestmark = pytest.mark.serving

MODELS = ["tokenizer", "generation", "detokenizer", "ensemble"]


def test_editing_the_ensemble_and_reloading_it_changes_what_clients_see(
    make_repository: Callable[..., Path],
) -> None:
    """An output renamed in config.pbtxt is served so after a load call, without a restart."""
    repository = make_repository(num_gpu_blocks_override=256)
    with TritonServer(repository, models=MODELS) as server:
        body = {"text_input": "def f(", "temperature": 0, "max_tokens": 12}
        before = generate(server.http_url, body)["text_output"]
        config = repository / "ensemble" / "config.pbtxt"
        text = config.read_text()
        # the output, and both sides of the detokenizer's map
        assert len(re.findall(r'"text_output"', text)) == 3
        text = text.replace('name: "text_output"', 'name: "answer"')
        text = re.sub(r'value: "text_output"', 'value: "answer"', text)
        config.write_text(text)
        server.load_model("ensemble")
        after = generate(server.http_url, body)
        assert before == after["answer"]
        assert "text_output" not in after


def test_settings_take_effect_when_generation_is_loaded_again(make_repository: Callable[..., Path]) -> None:
    """A lower max_model_len is refused by its name after the reload, and unloading frees the engine."""
    repository = make_repository(num_gpu_blocks_override=256)
    with TritonServer(repository, models=MODELS) as server:
        prompt = "x = 1\n" * 60
        assert 200 == server.generate("ensemble", {"text_input": prompt, "max_tokens": 2})[0]
        path = repository / "generation" / "1" / "model.json"
        path.write_text(path.read_text().replace("{", '{"max_model_len": 64,', 1))
        server.load_model("generation")
        server.load_model("tokenizer")
        status, answer = server.generate("ensemble", {"text_input": prompt, "max_tokens": 2})
        assert 400 == status
        assert "max_model_len" in answer["error"]
        assert "64" in answer["error"]
        events = generate_stream(server.http_url, {"text_input": "x", "stream": True, "max_tokens": 3})
        assert list(events)
        for name in ("ensemble", "generation", "detokenizer", "tokenizer"):
            server.unload_model(name)
        assert 400 <= server.generate("ensemble", {"text_input": prompt})[0] < 500
        assert server.get("/v2/health/live")[0] == 200
