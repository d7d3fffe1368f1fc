"""Names of other systems mean the same, and errors speak of the name that the client used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from client import HttpError, generate, stream_error
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

PROMPT = "def fibonacci(n):"

# the same request in the words of other systems
SPELLINGS: dict[str, dict[str, Any]] = {
    "sglang": {"max_new_tokens": 20, "sampling_seed": 5, "temperature": 0.8, "echo": False},
    "lmdeploy": {"max_new_tokens": 20, "random_seed": 5, "temperature": 0.8, "return_full_text": False},
    "openai": {"max_completion_tokens": 20, "seed": "5", "temperature": "0.8", "echo": False},
    "llmapi": {
        "sampling_param_max_tokens": 20,
        "sampling_param_seed": 5,
        "sampling_param_temperature": 0.8,
        "sampling_param_exclude_input_from_output": True,
    },
}


@pytest.fixture(scope="module")
def expected(server: TritonServer) -> str:
    body = {"max_tokens": 20, "seed": 5, "temperature": 0.8, "exclude_input_in_output": True}
    return str(generate(server.http_url, {"text_input": PROMPT, **body})["text_output"])


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_names_mean_the_same(server: TritonServer, expected: str, name: str) -> None:
    """As keys of generate and inside sampling_parameters."""
    given = SPELLINGS[name]
    assert expected == generate(server.http_url, {"text_input": PROMPT, **given})["text_output"]
    nested = {"text_input": PROMPT, "sampling_parameters": json.dumps(given)}
    assert expected == generate(server.http_url, nested)["text_output"]


def test_a_stop_string_by_another_name(server: TritonServer, expected: str) -> None:
    """Kept in the text by another system's word for it."""
    stop = expected[5:9]
    given = SPELLINGS["sglang"] | {"stop_sequences": json.dumps([stop]), "no_stop_trim": True}
    answer = generate(server.http_url, {"text_input": PROMPT, **given})["text_output"]
    assert expected[: expected.index(stop) + len(stop)] == answer


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"max_new_tokens": 0}, "max_new_tokens: got 0; allowed: an integer in [1, 2147483647]"),
    "two values": (
        {"max_new_tokens": 3, "max_tokens": 4},
        "(max_new_tokens)",
    ),
    "two values in two places": (
        {"max_new_tokens": 3, "sampling_parameters": '{"max_tokens": 4}'},
        "max_tokens: got 4 (max_tokens, sampling_parameters) and 3 (max_new_tokens, request parameter); "
        "allowed: one value",
    ),
    "two fields": (
        {"min_new_tokens": 3, "max_tokens": 2},
        "min_new_tokens: got 3; allowed: at most max_tokens (2)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_have_the_name_that_was_used(server: TritonServer, name: str) -> None:
    """In an answer and in a stream."""
    given, message = BAD[name]
    with pytest.raises(HttpError) as error:
        generate(server.http_url, {"text_input": "x", **given})
    assert message in error.value.message
    assert message in stream_error(server.http_url, {"text_input": "x", "stream": True, **given})


def test_a_truncated_prompt_answers_like_its_end(server: TritonServer, tokenizer: Tokenizer) -> None:
    """By both names, as a key and in sampling_parameters; -1 keeps what fits."""
    text = "x = 1\n" * 3 + PROMPT
    ids = tokenizer.encode(text).ids
    kept = [ids[0], *ids[-5:]]  # the tokenizer's special token stays
    body = {
        "exclude_input_in_output": True,
        "temperature": 0,
        "max_tokens": 12,
        "return_num_input_tokens": True,
    }
    direct = generate(server.http_url, {"input_ids": kept, "temperature": 0, "max_tokens": 12}, "generation")
    for given in ({"truncate_prompt_tokens": 6}, {"sampling_parameters": '{"truncate": 6}'}):
        answer = generate(server.http_url, {"text_input": text, **body, **given})
        assert (tokenizer.decode(direct["output_ids"]), 6) == (
            answer["text_output"],
            answer["num_input_tokens"],
        )
    long = {"text_input": "x = 1\n" * 2000, **body, "max_tokens": 1, "truncate_prompt_tokens": -1}
    assert 2047 == generate(server.http_url, long)["num_input_tokens"]


def test_special_tokens_come_once_or_not_at_all(server: TritonServer, tokenizer: Tokenizer) -> None:
    """A prompt that spells the token which begins every text counts and answers as one without it;
    add_special_tokens false leaves it out; generation, which gets ids, refuses the field by name."""
    [bos, *rest] = tokenizer.encode(PROMPT).ids
    spelled = tokenizer.id_to_token(bos) + PROMPT
    asked = {
        "temperature": 0,
        "max_tokens": 8,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
    }

    def answer(text: str, **given: Any) -> tuple[int, str]:
        found = generate(server.http_url, {"text_input": text, **asked, **given})
        return found["num_input_tokens"], found["text_output"]

    assert answer(PROMPT) == answer(spelled) == answer(spelled, add_special_tokens=False)
    assert (1 + len(rest), len(rest)) == (answer(PROMPT)[0], answer(PROMPT, add_special_tokens=False)[0])
    nested = json.dumps({"add_special_tokens": False})
    assert len(rest) == answer(PROMPT, sampling_parameters=nested)[0]
    with pytest.raises(HttpError, match="add_special_tokens: got a field that this model does not know"):
        generate(server.http_url, {"input_ids": rest, "add_special_tokens": False}, "generation")
