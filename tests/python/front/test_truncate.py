"""Special tokens around a prompt, and a prompt cut to its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from quire.errors import InvalidArgument
from quire.tokenizer import Tokenizer
from tokenizers.processors import TemplateProcessing


def with_special_tokens(folder: Path, raw: tokenizers.Tokenizer, template: str) -> Tokenizer:
    """`raw` with a template of "$A" and special tokens, which it gets."""
    raw = tokenizers.Tokenizer.from_str(raw.to_str())
    special = [token for token in dict.fromkeys(template.split()) if token != "$A"]
    raw.add_special_tokens(special)
    ids = [(token, raw.token_to_id(token)) for token in special]
    raw.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    raw.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <eos>", "<a> <bos> $A"])
def test_a_text_that_begins_with_the_special_tokens_gets_them_once(
    tokenizers_by_name: dict[str, tokenizers.Tokenizer], tmp_path: Path, template: str
) -> None:
    """A prompt that was rendered for a chat has them; those further in, and more of them at the start,
    are the prompt's own."""
    tokenizer = with_special_tokens(tmp_path, tokenizers_by_name["byte_level"], template)
    before, _, after = template.replace(" ", "").partition("$A")
    ids = tokenizer.encode("one two")
    assert ids == tokenizer.encode(f"{before}one two")
    assert tokenizer.encode_batch([f"{before}one two{after}"], add_special_tokens=False) == [ids]
    [bare] = tokenizer.encode_batch(["one two"], add_special_tokens=False)
    num_before = len(template.split("$A")[0].split())
    assert bare == ids[num_before : num_before + len(bare)]
    assert tokenizer.encode(f"{before}{before}one two") == ids[:num_before] + ids
    assert tokenizer.encode(before)[:num_before] == ids[:num_before]
    inside = tokenizer.encode(f"one{before}two")
    assert [2] * num_before == [inside.count(token_id) for token_id in ids[:num_before]]
    many = tokenizer.encode(f"{before}{'one two ' * 9}")
    cut = tokenizer.truncate(f"{before}{'one two ' * 9}", many, 7)
    assert ids[:num_before] == cut[:num_before]
    assert 7 == len(cut)
    assert bare[-3:] == tokenizer.truncate("one two", bare, 3, add_special_tokens=False)


def test_truncate_keeps_the_special_tokens_that_encode_adds(
    tokenizers_by_name: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    """As transformers does on the left side: special tokens, then the end of the text; ids are cut as they
    are."""
    tokenizer = with_special_tokens(tmp_path, tokenizers_by_name["byte_level"], "<bos> $A")
    bos = tokenizer.raw.token_to_id("<bos>")
    text = "one two three, Straße 敏捷"
    ids = tokenizer.encode(text)
    assert ids[0] == bos
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for limit in range(2, len(ids) + 2):
        reference.enable_truncation(limit, direction="left")
        assert tokenizer.truncate(text, ids, limit) == reference.encode(text).ids
        assert tokenizer.truncate(ids, ids, limit) == ids[-limit:]
    with pytest.raises(InvalidArgument, match=r"^truncate_prompt_tokens: got 1; allowed: at least 2 "):
        tokenizer.truncate(text, ids, 1)
