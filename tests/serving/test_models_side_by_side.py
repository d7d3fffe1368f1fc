"""Several models in one server, under names of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from client import HttpError, generate
from quire.errors import ServerError
from quire.triton.model_copy import add_model
from quire.triton.server import TritonServer, repository_index

PACKAGED = Path(__file__).parents[2] / "model_repository"
SMALL = {"num_threads": 1, "kv_cache_memory_bytes": 16 << 20}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The models `one` and `two`, which tell themselves apart by the longest answer that they give."""
    folder = tmp_path / "repository"
    for name, length in (("one", 4), ("two", 8)):
        settings = SMALL | {"max_output_tokens": length}
        add_model(PACKAGED, folder, "quire-8m", name, settings)
    return folder


def num_tokens(server: TritonServer, model: str) -> int:
    body = {"text_input": "def f(", "temperature": 0, "return_num_output_tokens": True}
    answer = generate(server.http_url, body, model)["num_output_tokens"]
    return int(answer)


def test_both_answer(repository: Path) -> None:
    """Every packaged interface of two models answers in one server, each from its own engine."""
    with TritonServer(repository) as server:
        for ending in ("", "_unary"):
            assert [num_tokens(server, f"{name}{ending}") for name in ("one", "two")] == [4, 8]


def test_explicit_control(repository: Path) -> None:
    """A model is loaded with its steps and unloaded with them, while the other one answers; one that cannot
    be loaded changes nothing."""
    with TritonServer(repository, models=["one"]) as server:
        assert num_tokens(server, "one") == 4
        settings = repository / "two-generation" / "1" / "model.json"
        good = settings.read_text()
        settings.write_text("{")
        with pytest.raises(ServerError, match=r"two-generation/1/model\.json: "):
            server.load_model("two")
        assert num_tokens(server, "one") == 4
        settings.write_text(good)
        server.load_model("two")
        assert [num_tokens(server, name) for name in ("one", "two")] == [4, 8]
        server.unload_model("one", with_steps=True)
        with pytest.raises(HttpError):
            num_tokens(server, "one")
        assert num_tokens(server, "two") == 8
        index = repository_index(server.http_url) or []
        ready = [entry["name"] for entry in index if entry.get("state") == "READY"]
        assert sorted(ready) == ["two", "two-detokenizer", "two-generation", "two-tokenizer"]
