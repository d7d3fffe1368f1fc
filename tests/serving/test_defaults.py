"""Defaults of the checkpoint and of the server reach every request that does not say otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import HttpError, generate, stream_error
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

PROMPT = "def fibonacci(n):"
LIMIT = 24


@pytest.fixture(scope="module")
def greedy_server(
    make_repository: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """Serves a checkpoint that says to be greedy, and a default of which Quire knows nothing."""
    folder = tmp_path_factory.mktemp("model")
    for path in (Path(__file__).parents[2] / "models" / "quire-8m").iterdir():
        if path.is_file() and path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    given = {"eos_token_id": 1, "do_sample": False, "no_repeat_ngram_size": 3, "max_new_tokens": 5}
    (folder / "generation_config.json").write_text(json.dumps(given))
    repository = make_repository(model=str(folder), max_output_tokens=LIMIT, num_gpu_blocks_override=256)
    with TritonServer(repository) as running:
        yield running


def test_the_checkpoints_defaults_hold_for_text_and_for_ids(
    greedy_server: TritonServer, tokenizer: Tokenizer
) -> None:
    """Without a word on sampling both models are greedy and go on to the server's limit; the request's word
    counts more."""
    body = {"text_input": PROMPT, "exclude_input_in_output": True, "ignore_eos": True}
    asked = generate(greedy_server.http_url, {**body, "temperature": 0, "max_tokens": LIMIT})["text_output"]
    counted = generate(greedy_server.http_url, {**body, "return_num_output_tokens": True})
    assert (asked, LIMIT) == (counted["text_output"], counted["num_output_tokens"])
    ids = {"input_ids": tokenizer.encode(PROMPT).ids, "ignore_eos": True}
    direct = generate(greedy_server.http_url, ids, "generation")["output_ids"]
    assert LIMIT == len(direct)
    assert asked == tokenizer.decode(direct)
    hot = {"temperature": 2.0, "seed": 1}
    assert asked != generate(greedy_server.http_url, body | hot)["text_output"]
    assert direct != generate(greedy_server.http_url, ids | hot, "generation")["output_ids"]


def test_more_than_the_servers_limit_is_an_error(greedy_server: TritonServer) -> None:
    """By every way in; the error names the setting."""
    over = {"max_tokens": LIMIT + 1}
    words = f"max_tokens: got {LIMIT + 1}; allowed: at most {LIMIT} (max_output_tokens of the server)"
    for body, model in (({"text_input": "x"}, "ensemble"), ({"input_ids": [5]}, "generation")):
        with pytest.raises(HttpError) as error:
            generate(greedy_server.http_url, body | over, model)
        assert words in error.value.message
    assert words in stream_error(greedy_server.http_url, {"text_input": "x", "stream": True} | over)


def test_what_the_checkpoint_asks_for_in_vain_is_in_the_log(greedy_server: TritonServer) -> None:
    """The engine's lines reach the server's log."""
    log = greedy_server.log
    assert "generation_config.json: no_repeat_ngram_size: got 3, which is not supported yet" in log
    assert "requests that do not say otherwise: temperature 0.0" in log
