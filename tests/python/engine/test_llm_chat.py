"""LLM.chat(), and the end-of-sequence token that a tokenizer names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, InvalidArgument, SamplingParams

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | length }} tools\n{% endif %}{% if add_generation_prompt %}bot: {% endif %}"
)
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ONE = [{"role": "user", "content": "Grüße"}]
TWO = [*ONE, {"role": "bot", "content": "so"}]


@pytest.fixture(scope="module")
def folder(llama_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(llama_folder(), folder)
    config = {"chat_template": TEMPLATE, "bos_token": "<bos>", "eos_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), dtype="float32", max_model_len=256, max_num_seqs=4, num_threads=1)


def test_chat_is_generate_with_the_rendered_prompt(llm: LLM) -> None:
    """One conversation or several, with the options of a chat; the template's BOS is the only one."""
    bos = llm._engine.tokenizer.raw.token_to_id("<bos>")
    for messages, options, prompts in (
        (ONE, {}, ["<bos>user: Grüße\nbot: "]),
        ([ONE, TWO], {}, ["<bos>user: Grüße\nbot: ", "<bos>user: Grüße\nbot: so\nbot: "]),
        (TWO, {"continue_final_message": True}, ["<bos>user: Grüße\nbot: so"]),
        (ONE, {"tools": [{"a": 1}], "add_generation_prompt": False}, ["<bos>user: Grüße\n1 tools\n"]),
    ):
        answers = llm.chat(messages, GREEDY, **options)
        assert prompts == [answer.prompt for answer in answers]
        assert [answer.prompt_token_ids.count(bos) for answer in answers] == [1] * len(prompts)
        texts = [answer.outputs[0].text for answer in llm.generate(prompts, GREEDY)]
        assert texts == [answer.outputs[0].text for answer in answers]


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "messages: got 0 of them; allowed: "),
        ("hello", {}, 'messages: got "hello"; allowed: a list of messages, or a list of such lists'),
        ([{"content": "x"}], {}, "messages[0].role: got nothing; allowed: "),
        ([ONE, [*ONE, {"role": "user"}]], {}, "messages[1]: messages[1].content: got nothing; allowed: "),
        (ONE, {"tool": []}, 'tool: got an unknown field (did you mean "tools"?); allowed: '),
        (
            ONE,
            {"chat_template": "{{ 1 }}"},
            'chat_template: got "{{ 1 }}"; allowed: default; or any with the',
        ),
    ],
)
def test_errors(llm: LLM, messages: Any, options: dict[str, Any], message: str) -> None:
    """A conversation that cannot be rendered is refused before anything runs."""
    with pytest.raises(InvalidArgument) as caught:
        llm.chat(messages, GREEDY, **options)
    assert str(caught.value).startswith(message)
    assert not llm._core.has_unfinished_requests()


def test_a_template_that_cannot_be_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start warns of it; prompts are answered, conversations are not."""
    broken = tmp_path / "model"
    shutil.copytree(folder, broken)
    (broken / "chat_template.jinja").write_text("{% if %}")
    llm = LLM(str(broken), dtype="float32", max_model_len=64, num_threads=1)
    assert 'chat template "default": got no Jinja template: ' in caplog.text
    with pytest.raises(InvalidArgument, match=r"^chat_template: got no Jinja template: .* at line 1"):
        llm.chat(ONE, GREEDY)
    assert llm.generate("a", GREEDY)[0].outputs[0].token_ids


def test_the_tokenizers_end_of_sequence_ends_a_request(llm: LLM) -> None:
    """Beside the one of config.json, and as that one without a stop reason."""
    pad = llm._engine.tokenizer.raw.token_to_id("<pad>")
    assert llm._core.config.eos_token_ids[-1] == pad != llm._core.config.eos_token_ids[0]
    only = SamplingParams(temperature=0, max_tokens=3, allowed_token_ids=[pad])
    [output] = llm.generate("a", only)
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    assert output.outputs[0].token_ids == (pad,)
