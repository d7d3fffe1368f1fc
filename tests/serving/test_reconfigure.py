"""People edit the repository: the ensemble's config changes and reloads, settings change, models unload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client import generate, generate_stream
from quire.triton.server import TritonServer

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


def test_settings_take_effect_when_models_are_loaded_again(make_repository: Callable[..., Path]) -> None:
    """What the README says of changing them: unload and load. A lower max_model_len is refused by its name by
    the stage that sees it first, a higher one is there, and unloading frees the engine."""
    repository = make_repository(num_gpu_blocks_override=256)
    path = repository / "generation" / "1" / "model.json"
    settings = json.loads(path.read_text())
    with TritonServer(repository, models=MODELS) as server:
        body = {"text_input": "x = 1\n" * 60, "max_tokens": 2}

        def set_max_model_len(value: int) -> tuple[int, Any]:
            path.write_text(json.dumps(settings | {"max_model_len": value}))
            for name in ("generation", "tokenizer"):
                server.unload_model(name)
            for name in ("generation", "tokenizer"):
                server.load_model(name)
            return server.generate("ensemble", body)

        assert server.generate("ensemble", body)[0] == 200
        status, answer = set_max_model_len(64)
        assert status == 400
        assert "text_input: got 301 tokens; allowed: at most 63 tokens (max_model_len - 1)" in answer["error"]
        ids = {"input_ids": [1] * 301, "max_tokens": 2}
        assert "allowed: at most 63 tokens" in server.generate("ensemble", ids)[1]["error"]
        events = generate_stream(server.http_url, {"text_input": "x", "stream": True, "max_tokens": 3})
        assert list(events)
        assert set_max_model_len(640)[0] == 200
        for name in ("ensemble", "generation", "detokenizer", "tokenizer"):
            server.unload_model(name)
        assert 400 <= server.generate("ensemble", body)[0] < 500
        assert server.get("/v2/health/live")[0] == 200
