"""Chat templates render as in transformers; what they refuse is the client's error."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import FAMILIES, of_transformers
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.chat import ChatTemplates, read_templates
from quire.chat_options import ChatOptions
from quire.errors import InvalidArgument, UnsupportedModel
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import TokenizerStage
from sample_tokenizers import train_byte_level, write_model
from stage_requests import ask
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

TEMPLATES = FAMILIES | of_transformers()
SPECIAL = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
JUDGE = PreTrainedTokenizerFast(tokenizer_object=train_byte_level(), **SPECIAL)

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather <now> & "then" in 東京',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
USER = {"role": "user", "content": "  What <b>is</b> it?\n"}
ANSWER = {"role": "assistant", "content": "<think>hm</think>\n\nIt is 42. "}
CONVERSATIONS = {
    "one question": [USER],
    "system": [{"role": "system", "content": "Be brief. /no_think"}, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "Really? 日本 🙂"}],
    "system and turns": [{"role": "system", "content": "S"}, USER, ANSWER, {"role": "user", "content": ""}],
    "ends with an answer": [USER, ANSWER],
    "two questions": [USER, USER],
    "a call": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "a call and its result": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "22.5"},
    ],
    "reasoning": [USER, {"role": "assistant", "content": "so", "reasoning": "because"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "another role": [{"role": "narrator", "content": "It was night."}],
}
KEYS = (
    "role",
    "content",
    "tool_calls",
    "reasoning_content",
    "thinking",
    "function",
    "name",
    "arguments",
    "text",
)
EXTRAS: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL, TOOL]},
    {"tools": [], "chat_template_kwargs": {"enable_thinking": False, "date_string": "today"}},
    {"documents": [{"doc_id": 1, "title": "T", "text": "t"}], "chat_template_kwargs": {"bos_token": "<s>"}},
    {"add_generation_prompt": False},
    {"continue_final_message": True},
]


def judged(template: str, chat: dict[str, Any]) -> str | None:
    """What transformers renders; None where it refuses."""
    continues = chat.get("continue_final_message", False)
    try:
        text = JUDGE.apply_chat_template(
            chat["messages"],
            tools=chat.get("tools"),
            documents=chat.get("documents"),
            chat_template=template,
            add_generation_prompt=chat.get("add_generation_prompt", not continues),
            continue_final_message=continues,
            tokenize=False,
            **chat.get("chat_template_kwargs", {}),
        )
    except Exception:
        return None
    return str(text)


def rendered(templates: dict[str, str], **chat: Any) -> str:
    return ChatTemplates(templates=templates, special_tokens=SPECIAL).render(ChatOptions(**chat))


@pytest.mark.parametrize("family", TEMPLATES)
def test_renders_as_transformers(family: str) -> None:
    """The same text, for every conversation that transformers renders, and an error for every other."""
    num_rendered = 0
    for (name, messages), extra in itertools.product(CONVERSATIONS.items(), EXTRAS):
        chat = {"messages": messages, **extra}
        expected = judged(TEMPLATES[family], chat)
        if expected is None:
            with pytest.raises(InvalidArgument):
                rendered({"default": TEMPLATES[family]}, **chat)
        else:
            assert expected == rendered({"default": TEMPLATES[family]}, **chat), (name, extra)
            num_rendered += 1
    assert num_rendered > 15


@pytest.mark.parametrize(
    "template",
    [
        "{%- for i in range(9) %}{% if i == 3 %}{% continue %}{% endif %}{{ i }}"
        "{% if i > 5 %}{% break %}{% endif %}\n{% endfor %}",
        "{% generation %}{% set a = 1 %}{{ messages[0].content }}{% endgeneration %}{{ a }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ dict(b=3) }}{{ dict.fromkeys([1]) }}",
        "{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}",
        "{{ strftime_now('%Y-%m') }}",
        "   {% if true %}\n  x  \n   {% endif %}\n\ny\n",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ raise_exception }}{{ undefined_thing }}",
        "{{ undefined.thing }}",
        "{{ 1 / 0 }}",
        "{{ '%s' | format(messages) }}{{ messages[0] | string }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_the_environment_is_that_of_transformers(template: str) -> None:
    """White space, loops, filters, functions and the sandbox do what they do there."""
    expected = judged(template, {"messages": [USER]})
    if expected is None:
        with pytest.raises(
            InvalidArgument, match=r"^messages: got messages that the chat template refuses: "
        ):
            rendered({"default": template}, messages=[USER])
    elif "0x" not in expected:  # an address
        assert expected == rendered({"default": template}, messages=[USER])


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (
            {"messages": "[{]"},
            r"messages: got malformed JSON: .* at line 1 column 3; allowed: a list of JSON",
        ),
        (
            {"messages": '[{"role": "a", "role": "b"}]'},
            r'messages: got the key "role" twice; allowed: each key',
        ),
        ({"messages": "3"}, r"messages: got 3; allowed: a list of JSON objects, at least 1 of them$"),
        ({"messages": {"role": "user"}}, r"messages: got {.*; allowed: a list of JSON objects"),
        ({"messages": []}, r"messages: got 0 of them; allowed: "),
        ({"messages": [USER, "a"]}, r'messages\[1\]: got "a"; allowed: a JSON object$'),
        (
            {"messages": [USER, {"content": "a"}]},
            r"messages\[1\]\.role: got nothing; allowed: a string, such as",
        ),
        ({"messages": [{"role": 1, "content": "a"}]}, r"messages\[0\]\.role: got 1; allowed: "),
        (
            {"messages": [{"role": "user"}]},
            r"messages\[0\]\.content: got nothing; allowed: a string, or a list",
        ),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content: got null; allowed: "),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content: got 5; allowed: "),
        ({"messages": [USER | {"x": {1, 2}}]}, r"messages: got "),
        ({"messages": [USER | {"x": float("nan")}]}, r"messages: got malformed JSON: NaN"),
        ({"messages": [USER], "tools": [3]}, r"tools\[0\]: got 3; allowed: a JSON object"),
        (
            {"messages": [USER], "chat_template_kwargs": "[]"},
            r"chat_template_kwargs: got \[\]; allowed: a JSON obj",
        ),
        (
            {"messages": [USER], "chat_template_kwargs": {"tools": 1}},
            r'chat_template_kwargs: got the key "tools"',
        ),
        (
            {"messages": [USER], "chat_template": "{{ 1 }}"},
            r'chat_template: got "{{ 1 }}"; allowed: default; or any',
        ),
        (
            {"messages": [USER], "chat_template": "defualt"},
            r'got "defualt" \(did you mean "default"\?\); allowed',
        ),
        ({"tools": [TOOL]}, r"tools: got a value without messages; allowed: only with messages"),
        ({"continue_final_message": True}, r"continue_final_message: got a value without messages"),
        (
            {"messages": [USER], "continue_final_message": True, "add_generation_prompt": True},
            r"continue_final_message, add_generation_prompt: got both true; allowed: one of them",
        ),
        (
            {"messages": [USER, USER]},
            r'^messages: got messages that the chat template refuses: "Conversation roles',
        ),
    ],
)
def test_errors_name_the_place(chat: dict[str, Any], message: str) -> None:
    """A conversation that cannot be rendered is refused with the index and the key that are wrong."""
    with pytest.raises(InvalidArgument, match=message):
        rendered({"default": FAMILIES["gemma"]}, **chat)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
messages_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | json_values},
        optional={key: st.text(max_size=5) | json_values for key in KEYS if key != "role"},
    )
    | json_values,
    max_size=4,
)


@given(
    messages=messages_of_any_kind,
    options=st.fixed_dictionaries(
        {},
        optional={
            "tools": json_values,
            "documents": json_values,
            "chat_template_kwargs": json_values,
            "continue_final_message": st.booleans(),
            "add_generation_prompt": st.booleans(),
        },
    ),
    family=st.sampled_from(sorted(FAMILIES)),
)
@settings(max_examples=examples(600))
def test_any_messages(messages: Any, options: dict[str, Any], family: str) -> None:
    """Whatever JSON stands for a conversation is rendered, or an error of the request."""
    with contextlib.suppress(InvalidArgument):
        assert isinstance(rendered({"default": FAMILIES[family]}, messages=messages, **options), str)


def test_deep_messages() -> None:
    """JSON that is nested too deeply, or holds itself, is refused."""
    circle: dict[str, Any] = dict(USER)
    circle["x"] = circle
    for messages in ([circle], "[" * 100_000 + "]" * 100_000):
        with pytest.raises(InvalidArgument, match=r"^messages: got "):
            ChatOptions(messages=messages)


def test_named_templates() -> None:
    """A request names a template; tools take the one called tool_use; without a default a name is needed."""
    named = {"default": "d", "tool_use": "t", "rag": "r"}
    assert rendered(named, messages=[USER]) == "d"
    assert rendered(named, messages=[USER], tools=[TOOL]) == "t"
    assert rendered(named, messages=[USER], tools=[TOOL], chat_template="rag") == "r"
    with pytest.raises(InvalidArgument, match=r"^chat_template: got nothing; allowed: rag$"):
        rendered({"rag": "r"}, messages=[USER])
    with pytest.raises(
        InvalidArgument, match=r"^messages: got a conversation, but the model has no chat template; "
    ):
        rendered({}, messages=[USER])
    with pytest.raises(InvalidArgument, match=r"^chat_template: got \"x\"; allowed: nothing"):
        rendered({}, messages=[USER], chat_template="x")


def test_a_template_of_the_request() -> None:
    """Accepted only where the setting says so; one that jinja2 cannot read is named with its line."""
    trusting = ChatTemplates(templates={"default": "d"}, trusts_requests=True)
    own = ChatOptions(messages=[USER], chat_template="{{ messages | length }}")
    assert trusting.render(own) == "1"
    with pytest.raises(
        InvalidArgument, match=r"^chat_template: got no Jinja template: .* at line 2; allowed: "
    ):
        trusting.render(ChatOptions(messages=[USER], chat_template="\n{% if %}"))
    [warning] = ChatTemplates(templates={"default": "{% if %}", "good": "{{ a }}"}).warnings()
    assert 'chat template "default": got no Jinja template: ' in warning


def test_where_templates_come_from(tmp_path: Path) -> None:
    """Files come before tokenizer_config.json, which holds one template or a list of named ones."""
    folder = write_model(tmp_path, train_byte_level())
    for content, expected in (
        ("one", {"default": "one"}),
        (
            [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}],
            {"default": "a", "rag": "b"},
        ),
        (None, {}),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": content}))
        assert expected == Tokenizer(folder).files.templates
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(
        UnsupportedModel, match=r"tokenizer_config.json: chat_template: got 7; allowed: a string, or"
    ):
        Tokenizer(folder)
    (folder / "chat_template.jinja").write_text("file")
    assert {"default": "file"} == Tokenizer(folder).files.templates
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("more")
    assert {"default": "file", "rag": "more"} == read_templates(folder, {})
    judge = PreTrainedTokenizerFast.from_pretrained(folder)
    assert judge.chat_template == Tokenizer(folder).files.templates


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> TokenizerStage:
    """With a BOS before every text, which the templates spell, too."""
    raw = train_byte_level()
    raw.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", raw.token_to_id("<|begin|>"))]
    )
    folder = write_model(tmp_path_factory.mktemp("chat"), raw)
    (folder / "chat_template.jinja").write_text(FAMILIES["gemma"])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/bare.jinja").write_text("{{ messages[0].content }}")
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL))
    tokenizer = Tokenizer(folder)
    chat = tokenizer.chat_templates(trusts_requests=False)
    return TokenizerStage(tokenizer, 256, bytes_per_token=20, chat=chat)


def test_messages_are_a_prompt(stage: TokenizerStage) -> None:
    """As a tensor, inside sampling_parameters and as a request parameter; with one BOS; not in the answer
    unless the request asks for it."""
    judge = PreTrainedTokenizerFast(tokenizer_object=stage.tokenizer.raw, **SPECIAL)
    messages = json.dumps([USER])
    expected = judge.apply_chat_template([USER], add_generation_prompt=True, chat_template=FAMILIES["gemma"])
    for inputs, parameters in (
        ({"messages": messages}, {}),
        ({"sampling_parameters": json.dumps({"messages": [USER]})}, {}),
        ({}, {"messages": messages}),
    ):
        answer = ask(stage, inputs, parameters)
        assert (answer.error, answer.ids) == (None, expected["input_ids"])
        assert "prompt_text" not in answer.fields
    shown = ask(stage, {"messages": messages}, {"echo": True})
    assert shown.fields["prompt_text"][0].startswith("<|begin|><start_of_turn>user\nWhat")


def test_fields_of_a_chat_reach_the_template(stage: TokenizerStage) -> None:
    """add_special_tokens is false unless given; templates are chosen by name; options may be parameters."""
    begin = stage.tokenizer.raw.token_to_id("<|begin|>")
    messages = json.dumps([{"role": "user", "content": "Hello"}])
    bare = ask(stage, {"messages": messages}, {"chat_template": "bare"})
    assert stage.tokenizer.raw.encode("Hello", add_special_tokens=False).ids == bare.ids
    given = ask(stage, {"messages": messages}, {"chat_template": "bare", "add_special_tokens": True})
    assert [begin, *bare.ids] == given.ids
    whole = ask(stage, {"messages": messages}).ids
    without = ask(stage, {"messages": messages, "add_generation_prompt": False}).ids
    assert whole[: len(without)] == without != whole
    open_end = ask(stage, {"messages": messages}, {"continue_final_message": True}).ids
    assert stage.tokenizer.decode(open_end).endswith("user\nHello")
    other = ask(stage, {"messages": messages, "chat_template_kwargs": '{"bos_token": "x"}'}).ids
    assert stage.tokenizer.decode(other, skip_special_tokens=False).startswith("x<start")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text_input": "a", "messages": "[]"}, "messages: got 0 of them; allowed: "),
        ({"text_input": "a", "messages": json.dumps([USER])}, "text_input, messages: got both; allowed: one"),
        ({"input_ids": np.array([1]), "messages": json.dumps([USER])}, "input_ids, messages: got both; "),
        ({}, "text_input: got nothing; allowed: a non-empty string, or input_ids or messages instead"),
        (
            {"text_input": "a", "tools": "[{}]"},
            "tools: got a value without messages; allowed: only with messages",
        ),
        (
            {"messages": "hello"},
            "messages: got malformed JSON: Expecting value at line 1 column 1; allowed: ",
        ),
        ({"messages": json.dumps([USER, USER])}, "messages: got messages that the chat template refuses: "),
        ({"messages": json.dumps([{"role": "user", "content": "é" * 300}])}, "messages: got "),
        ({"messages": json.dumps([{"role": "user", "content": "x " * 9000}])}, "messages: got "),
        ({"messages": '[{"role": "user", "content": "\\ud83d"}]'}, "messages: got "),
    ],
)
def test_errors_of_the_stage(stage: TokenizerStage, inputs: dict[str, object], message: str) -> None:
    """A request has one prompt, and what is wrong with its messages goes by their name."""
    assert str(ask(stage, inputs).error).startswith(message)


def test_defaults_of_a_chat_without_messages(stage: TokenizerStage) -> None:
    """Clients that send every field with its default are answered."""
    neutral = {"add_generation_prompt": True, "continue_final_message": False, "tools": "[]"}
    assert ask(stage, {"text_input": "a"}, neutral).error is None
