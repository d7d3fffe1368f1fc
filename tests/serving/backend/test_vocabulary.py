"""Ids carry the identity of their vocabulary: generation refuses those of another tokenizer."""

from __future__ import annotations

from pathlib import Path

from backend_server import Repository, StartServer


def test_ids_of_another_vocabulary(start_server: StartServer, tmp_path: Path) -> None:
    """Ids of another tokenizer, of the same under another name, of the same name after a change, and ids that
    nobody vouches for."""
    repository = Repository(tmp_path / "models", vocabulary="1111 llama")
    server = start_server(repository).wait_ready()
    for model in ("generation", "ensemble"):
        body = {"input_ids": [1, 2], "max_tokens": 2}
        _, error = server.generate_error(model, **body, vocabulary="2222 qwen")
        expected = "vocabulary: got ids of the tokenizer of model 'qwen'; allowed: of model 'llama', which"
        assert expected in error
        assert "generation_model" in error
        assert server.generate(model, **body, vocabulary="1111 llama-finetuned")
        assert server.generate(model, **body)
        error = server.generate_error(model, **body, vocabulary="2222 llama")[1]
        assert "as model 'generation' has loaded it" in error
        assert "load both again" in error


def test_an_engine_that_does_not_tell_its_vocabulary(start_server: StartServer, tmp_path: Path) -> None:
    """It takes any ids: an engine of somebody's own need not know of this."""
    server = start_server(Repository(tmp_path / "models")).wait_ready()
    assert server.generate("generation", input_ids=[1], vocabulary="2222 qwen", max_tokens=1)
