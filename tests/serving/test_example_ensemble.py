"""examples/ensemble: stages of one's own in every place of an ensemble with another name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import generate, generate_stream, stream_error
from quire.triton.check import check_repository
from quire.triton.server import TritonServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "ensemble"
PROMPT = "def count():\n    return 10 + "
FIELDS = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def repository(make_repository: Callable[..., Path]) -> Path:
    folder = make_repository()
    for model in EXAMPLE.glob("*/"):
        if model.is_dir():
            shutil.copytree(model, folder / model.name)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository) as running:
        yield running


def test_the_example_passes_the_check(repository: Path) -> None:
    """Without a problem and without a note."""
    assert check_repository(repository) == []


def test_each_stage_has_its_say(server: TritonServer) -> None:
    """The prompt is rewritten before it is tokenized, and the text of the answer is filtered."""
    plain = generate(server.http_url, {"text_input": f"# Python 3\n{PROMPT}", **FIELDS})["text_output"]
    answer = generate(server.http_url, {"text_input": PROMPT, **FIELDS}, "assistant")["text_output"]
    assert answer == re.sub("[0-9]", "#", plain)
    assert answer.startswith("# Python #\n")


def test_the_ids_are_shortened(server: TritonServer) -> None:
    """A long prompt arrives at generation as its last 256 ids; a short one whole."""
    for text, expected in (("x = 1\n" * 200, 256), ("x", None)):
        body = {"text_input": text, **FIELDS, "return_num_input_tokens": True}
        rewritten = {**body, "text_input": f"# Python 3\n{text}"}
        whole = generate(server.http_url, rewritten)["num_input_tokens"]
        assert generate(server.http_url, body, "assistant")["num_input_tokens"] == (expected or whole)


def test_a_stream_is_the_same_text(server: TritonServer) -> None:
    """Chunk by chunk, in order, with what comes beside the text and ends once."""
    body = {"text_input": PROMPT, **FIELDS, "exclude_input_in_output": True, "return_finish_reason": True}
    whole = generate(server.http_url, body, "assistant")
    events = [*generate_stream(server.http_url, {**body, "stream": True}, "assistant")]
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert [event["finish_reason"] for event in events] == ["None"] * (len(events) - 1) + [
        whole["finish_reason"]
    ]


def test_an_error_names_the_field(server: TritonServer) -> None:
    """Stages between do not change what a client hears."""
    error = stream_error(server.http_url, {"text_input": "x", "stream": True, "top_p": 7}, "assistant")
    assert "top_p: got 7.0; allowed: " in error
