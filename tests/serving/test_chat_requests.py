"""Conversations through a real server: `messages` in place of `text_input`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import GrpcStream, HttpError, generate, generate_stream, result_text, text_inputs
from quire.triton.server import TritonServer
from tokenizers import Tokenizer

MODEL = Path(__file__).parents[2] / "models" / "quire-8m"
TEMPLATE = (
    "{{ bos_token }}{% if tools %}# {{ tools | tojson }}\n{% endif %}{% for message in messages %}"
    "{% if message.role not in ('user', 'assistant') %}{{ raise_exception('no role ' + message.role) }}"
    "{% endif %}# {{ message.role }}\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant\n{{ start or '' }}{% endif %}"
)
MESSAGES = [{"role": "user", "content": "def fibonacci(n):"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
GREEDY = {"temperature": 0, "max_tokens": 12}
PROMPT = "<|begin|># user\ndef fibonacci(n):\n# assistant\n"


@pytest.fixture(scope="module")
def chat_server(
    make_repository: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with TritonServer(make_repository(model=str(folder))) as running:
        yield running


def answer(server: TritonServer, model: str = "ensemble", **body: Any) -> str:
    given = GREEDY | {"exclude_input_in_output": True} | body
    return str(generate(server.http_url, given, model)["text_output"])


@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
def test_messages_answer_as_their_prompt(chat_server: TritonServer, model: str) -> None:
    """The answer is that to the rendered text; the prompt is in it only where the request says so."""
    messages = json.dumps(MESSAGES)
    for more, prompt in (
        ({}, PROMPT),
        ({"tools": json.dumps(TOOLS)}, f"<|begin|># {json.dumps(TOOLS)}\n{PROMPT[9:]}"),
        ({"chat_template_kwargs": '{"start": "import"}'}, PROMPT + "import"),
        ({"add_generation_prompt": False}, PROMPT.removesuffix("# assistant\n")),
        ({"continue_final_message": True}, PROMPT.removesuffix("\n# assistant\n")),
    ):
        expected = answer(chat_server, model, text_input=prompt)
        assert expected == str(
            generate(chat_server.http_url, {"messages": messages, **GREEDY, **more}, model)["text_output"]
        )
        nested = {"sampling_parameters": json.dumps({"messages": MESSAGES, **more})}
        assert expected == answer(chat_server, model, **nested)
    shown = answer(chat_server, model, messages=messages, exclude_input_in_output=False)
    assert shown == PROMPT + answer(chat_server, model, text_input=PROMPT)


def test_streams(chat_server: TritonServer) -> None:
    """A stream of a conversation, over HTTP and gRPC, joined, is the one-shot answer."""
    expected = answer(chat_server, text_input=PROMPT)
    messages = json.dumps(MESSAGES)
    events = generate_stream(chat_server.http_url, {"messages": messages, "stream": True, **GREEDY})
    assert expected == "".join(event["text_output"] for event in events)
    inputs = text_inputs(messages=messages, stream=True, sampling_parameters=GREEDY)
    with GrpcStream(chat_server.grpc_url, inputs) as stream:
        assert expected == "".join(map(result_text, stream))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": json.dumps([{"role": "system", "content": "x"}])},
            'refuses: "no role system"; allowed: ',
        ),
        ({"messages": json.dumps([{"content": "x"}])}, "messages[0].role: got nothing; allowed: "),
        ({"messages": "[", "text_input": "x"}, "messages: got malformed JSON: "),
        (
            {"messages": json.dumps(MESSAGES), "text_input": "x"},
            "text_input, messages: got both; allowed: one",
        ),
        ({"messages": json.dumps(MESSAGES), "chat_template": "{{ 1 }}"}, "chat_template: got "),
    ],
)
@pytest.mark.parametrize("model", ["ensemble", "ensemble_unary"])
def test_errors(chat_server: TritonServer, model: str, body: dict[str, Any], message: str) -> None:
    """What is wrong with a conversation is the client's error, by the name of its field."""
    with pytest.raises(HttpError) as caught:
        generate(chat_server.http_url, {**GREEDY, **body}, model)
    assert caught.value.status == 400
    assert message in caught.value.message


def test_a_special_token_is_a_stop_string(chat_server: TritonServer, tokenizer: Tokenizer) -> None:
    """It ends the answer although skip_special_tokens hides it."""
    body = {
        "messages": json.dumps(MESSAGES),
        "stop": ["<|end|>"],
        "allowed_token_ids": [tokenizer.token_to_id("<|end|>")],
        "ignore_eos": True,
        "max_tokens": 4,
        "return_stop_reason": True,
        "return_num_output_tokens": True,
    }
    found = generate(chat_server.http_url, body)
    assert (found["text_output"], found["stop_reason"], found["num_output_tokens"]) == ("", "<|end|>", 1)
