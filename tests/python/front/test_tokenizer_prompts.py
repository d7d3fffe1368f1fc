"""The tokenizer stage: prompts as text or ids, one or several, cut, with and without special tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import TokenizerStage
from sample_tokenizers import train_byte_level
from stage_requests import ask
from tokenizers import Regex, pre_tokenizers


@pytest.fixture(scope="module")
def stage(byte_level_model: Path) -> TokenizerStage:
    return TokenizerStage(Tokenizer(byte_level_model), 64)


def test_prompts_are_truncated_on_request(stage: TokenizerStage, byte_level_model: Path) -> None:
    """The end of the prompt is kept; -1 keeps what fits into the model; the text is given back whole."""
    text = "x y z " * 40
    ids = Tokenizer(byte_level_model).encode(text)
    assert len(ids) > 64
    for name, limit, kept in (
        ("truncate_prompt_tokens", 10, 10),
        ("truncate", "10", 10),
        ("truncate_prompt_tokens", -1, 63),
    ):
        response = ask(stage, {"text_input": text}, {name: limit})
        assert response.ids == ids[-kept:]
        assert response.fields["prompt_text"] == [text]
    whole = ask(stage, {"text_input": "x y"}, {"truncate": 50}).ids
    assert whole == Tokenizer(byte_level_model).encode("x y")
    for limit in (0, -2, 2**31, 1.5):
        assert ask(stage, {"text_input": text}, {"truncate": limit}).error.startswith("truncate: got ")


def test_special_tokens_are_added_on_request(
    tokenizers_by_name: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    """add_special_tokens false leaves them out, for that request only."""
    raw = tokenizers.Tokenizer.from_str(tokenizers_by_name["byte_level"].to_str())
    raw.add_special_tokens(["<bos>"])
    bos = raw.token_to_id("<bos>")
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), 64)
    texts = ["one", "two", "<bos>three"]
    for parameters in (
        {"add_special_tokens": False},
        {"sampling_parameters": '{"add_special_tokens": false}'},
    ):
        given = (None, parameters, None)
        answers = [ask(stage, {"text_input": text}, more) for text, more in zip(texts, given, strict=True)]
        found = [answer.ids for answer in answers]
        assert [1, 0, 1] == [ids.count(bos) for ids in found]
        assert raw.encode("two", add_special_tokens=False).ids == found[1]
        assert raw.encode("three").ids == found[2]
    assert "add_special_tokens: got" in ask(stage, {"text_input": "a"}, {"add_special_tokens": 1}).error


def test_a_token_that_the_model_does_not_have(byte_level_model: Path) -> None:
    """A text with an id past vocab_size is refused under the client's name, with the token's text."""
    tokenizer = Tokenizer(byte_level_model)
    last = tokenizer.raw.get_vocab_size() - 1
    stage = TokenizerStage(tokenizer, 64, vocab_size=last)
    text = tokenizer.raw.id_to_token(last)
    message = ask(stage, {"text_input": f"a{text}"}).error
    assert f"text_input: got the token {json.dumps(text)}, whose id is {last}; allowed: " in message
    assert f"ids 0 to {last - 1} (vocab_size)" in message
    assert ask(stage, {"text_input": "a"}).error is None
    rows = ask(stage, {"text_input": ["a", f"a{text}"]}).error
    assert f"whose id is {last} at 1; allowed: " in rows
    by_ids = ask(stage, {"input_ids": np.asarray([last], np.int32)})  # generation's to refuse
    assert by_ids.error is None


def test_the_prompt_as_ids(stage: TokenizerStage) -> None:
    """Ids pass as they are; the prompt is not in the answer."""
    ids = np.asarray([3, 1, 2], np.int32)
    by_ids, by_text = ask(stage, {"input_ids": ids}), ask(stage, {"text_input": "a"})
    assert by_ids.ids == [3, 1, 2]
    assert "prompt_text" not in by_ids.fields
    assert "prompt_text" in by_text.fields
    for parameters, message in (
        ({"exclude_input_in_output": False}, "exclude_input_in_output: got false with input_ids; allowed: "),
        (
            {"echo": True},
            "echo: got true, which means exclude_input_in_output false with input_ids; allowed: ",
        ),
    ):
        assert ask(stage, {"input_ids": ids}, parameters).error.startswith(message)


def test_several_prompts(stage: TokenizerStage, byte_level_model: Path) -> None:
    """Ids one after the other, lengths, and every prompt; a role that has no rows refuses them."""
    texts = ["one", "zwei Straßen", "三"]
    good = ask(stage, {"text_input": texts})
    empty = ask(stage, {"text_input": ["a", ""]})
    long = ask(stage, {"text_input": ["a", "x" * 500, "b"]})
    tokenizer = Tokenizer(byte_level_model)
    rows = [tokenizer.encode(text) for text in texts]
    assert good.ids == [token for row in rows for token in row]
    assert good.fields["prompt_lengths"] == list(map(len, rows))
    assert good.fields["prompt_text"] == texts
    assert empty.error == "text_input: got an empty string at 1; allowed: a non-empty string"
    assert re.match(r"text_input: got \d+ tokens at 1; ", long.error)


def test_text_without_tokens(tokenizers_by_name: dict, tmp_path: Path) -> None:
    """A text of which the tokenizer makes nothing is refused."""
    tokenizers_by_name["word_level"].save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), None)
    response = ask(stage, {"text_input": " "})
    assert response.error == "text_input: got text of 0 tokens; allowed: text of at least one token"


def test_a_panic_of_the_tokenizer(tmp_path: Path) -> None:
    """A regular expression that runs away over a text is that text's error, by the name of its field, and
    says nothing of the library's files; other texts go on."""
    raw = train_byte_level()
    runs_away = pre_tokenizers.Split(Regex("^(([a-z])+.)+[A-Z]([a-z])+$"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([runs_away, pre_tokenizers.ByteLevel(use_regex=False)])
    raw.save(str(tmp_path / "tokenizer.json"))
    stage = TokenizerStage(Tokenizer(tmp_path), None)
    bad = "a" * 1000
    allowed = "allowed: text that the tokenizer knows (it failed)"
    assert ask(stage, {"text_input": bad}).error.startswith("text_input: got ")
    assert ask(stage, {"text_input": bad}).error.endswith(allowed)
    assert ask(stage, {"text_input": ["one", bad]}).error.endswith(allowed)
    assert ask(stage, {"text_input": bad}, {"truncate_prompt_tokens": 2}).error.endswith(allowed)
    words = ask(stage, {"text_input": "one"}, {"bad_words": bad}).error
    assert words.startswith("bad_words: got ")
    assert words.endswith(allowed)
    assert ask(stage, {"text_input": "one"}).ids == raw.encode("one").ids
