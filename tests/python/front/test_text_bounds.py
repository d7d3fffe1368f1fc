"""How long a text may be: what fits is never refused, what cannot fit is refused without work."""

from __future__ import annotations

import struct
import sys
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quire.errors import InvalidArgument
from quire.text_bounds import bytes_per_token
from quire.tokenizer import Tokenizer
from quire.triton.prompt_bounds import MAX_TEXT_BYTES, PromptBounds
from quire.triton.tensors import MAX_STRINGS, read_strings
from quire.triton.tokenizer_stage import TokenizerStage
from sample_tokenizers import TOKENIZERS, train_byte_level
from stage_requests import ask
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

KEEPING = {
    "NFC": normalizers.NFC(),
    "NFKC": normalizers.NFKC(),
    "Lowercase": normalizers.Lowercase(),
    "Replace": normalizers.Replace("aaaa", "b"),
    "Sequence": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
}


@cache
def tokenizer_of(name: str) -> RawTokenizer:
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    tokenizer = train_byte_level()
    tokenizer.normalizer = KEEPING[name]
    return tokenizer


@pytest.mark.parametrize("name", [*TOKENIZERS, *KEEPING])
@settings(max_examples=examples(60))
@given(text=st.text(max_size=300))
@example(text=" " * 500)
@example(text="a" * 500)
@example(text="\u1fbe\u0308\u0301\U0001d400" * 50)
@example(text="\x00\u200b\u0300\u212a" * 50)
def test_no_token_stands_for_more(name: str, text: str) -> None:
    """A text has at least its length divided by the bound in tokens, whatever the tokenizer."""
    tokenizer = tokenizer_of(name)
    bound = bytes_per_token(tokenizer)
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert bound is None or num_tokens * bound >= len(text.encode())
    assert bound is not None or name not in ("byte_level", "metaspace_fallback", "gemma_like", *KEEPING)


def test_unicode_forms() -> None:
    """No character is longer than four times its normal form or its lower case."""
    text = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    forms = [str.lower, *(lambda c, form=form: unicodedata.normalize(form, c) for form in ("NFC", "NFKC"))]
    assert all(len(char.encode()) <= 4 * len(form(char).encode()) for char in text for form in forms)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.StripAccents()),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace(" ", "")),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
        lambda tokenizer: setattr(
            tokenizer,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(use_regex=False)]
            ),
        ),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)]),
    ],
)
def test_tokenizers_that_drop_text_have_no_bound(change: object) -> None:
    """Where text may vanish, no length says that it is too much."""
    tokenizer = train_byte_level()
    change(tokenizer)
    assert bytes_per_token(tokenizer) is None


def test_what_cannot_fit_is_not_tokenized(byte_level_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is too long for its bytes, ids or rows is refused before the tokenizer sees it."""
    tokenizer = Tokenizer(byte_level_model)
    bound = bytes_per_token(tokenizer.raw)
    stage = TokenizerStage(tokenizer, 64, bytes_per_token=bound)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_, **__: pytest.fail("tokenized"))
    longest = 63 * bound
    for inputs, message in (
        ({"text_input": "a" * (longest + 1)}, f"text_input: got {longest + 1} bytes; allowed: at most "),
        (
            {"text_input": ["a", "ß" * longest]},
            f"text_input: got {2 * longest} bytes at 1; ",
        ),
        ({"text_input": ["a" * 300] * 15_000}, f"text_input: got {300 * 15_000} bytes; "),
        ({"input_ids": np.ones(64, np.int64)}, "input_ids: got 64 tokens; allowed: at most 63 tokens"),
        (
            {"text_input": "a", "sampling_parameters": " " * (MAX_TEXT_BYTES + 1)},
            "sampling_parameters: got",
        ),
    ):
        assert ask(stage, inputs).error.startswith(message)
    too_much = {"truncate_prompt_tokens": 5, "stop": "x" * (MAX_TEXT_BYTES + 1)}
    assert ask(stage, {"text_input": "a"}, too_much).error.startswith("stop: got ")


def test_a_long_text_is_tried_at_its_beginning(
    byte_level_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bytes do not say it, a beginning of far too many tokens does; no more is tokenized."""
    tokenizer = Tokenizer(byte_level_model)
    stage = TokenizerStage(tokenizer, 64)  # no bound
    sizes = []
    encode = Tokenizer.encode_batch

    def measured(self: Tokenizer, texts: list[str], **options: bool) -> list[list[int]]:
        sizes.append(sum(map(len, texts)))
        return encode(self, texts, **options)

    monkeypatch.setattr(Tokenizer, "encode_batch", measured)
    bounds = PromptBounds(64, None)
    text = "x y z " * (bounds.probe_length // 2)
    error = ask(stage, {"text_input": text}).error
    assert error.startswith(f"text_input: got {len(text)} bytes, of which the first {bounds.probe_length} ")
    assert error.endswith("tokens; allowed: at most 63 tokens (max_model_len - 1)")
    assert sizes == [bounds.probe_length]
    bounds.check_probe(text, 2 * 63)  # the whole text may still have fewer


def test_truncated_prompts_may_be_longer(byte_level_model: Path) -> None:
    """With truncate_prompt_tokens a prompt may have any length up to the documented one."""
    tokenizer = Tokenizer(byte_level_model)
    stage = TokenizerStage(tokenizer, 64, bytes_per_token=bytes_per_token(tokenizer.raw))
    text = "x y z " * 2000
    ids = ask(stage, {"text_input": text}, {"truncate_prompt_tokens": 7}).ids
    assert ids == tokenizer.encode(text)[-7:]
    long = ask(stage, {"text_input": "a" * (MAX_TEXT_BYTES + 1)}, {"truncate_prompt_tokens": 7})
    assert (
        long.error == f"text_input: got {MAX_TEXT_BYTES + 1} bytes; allowed: at most {MAX_TEXT_BYTES} bytes"
    )


def test_bounds_follow_the_context() -> None:
    """A context that holds more text than the usual bound allows more."""
    assert PromptBounds(None, None).max_text_bytes == PromptBounds(2048, 41).max_text_bytes == MAX_TEXT_BYTES
    assert PromptBounds(1 << 20, None).max_text_bytes > MAX_TEXT_BYTES
    assert PromptBounds(131_072, 256).max_text_bytes == PromptBounds(131_072, 256).max_prompt_bytes


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ([MAX_STRINGS + 1], b"", "x: got 16385 values; allowed: at most 16384"),
        ([1 << 40, 1 << 40], b"", "x: got 1208925819614629174706176 values; "),
        ([2], struct.pack("<I", 1) + b"a", "x: got a damaged STRING tensor; "),
        ([1], struct.pack("<I", 1 << 30) + b"a", "x: got a damaged STRING tensor; "),
        ([1], struct.pack("<I", 0) + b"a", "x: got a damaged STRING tensor; "),
        ([1], b"\x00", "x: got a damaged STRING tensor; "),
        ([-1], b"", "x: got -1 values; "),
    ],
)
def test_damaged_strings(shape: list[int], content: bytes, message: str) -> None:
    """A STRING tensor is what its shape says, or an error that names it."""
    with pytest.raises(InvalidArgument) as raised:
        read_strings("x", shape, memoryview(content))
    assert str(raised.value).startswith(message)


def test_strings() -> None:
    """The elements of a STRING tensor, in its shape."""
    content = b"".join(struct.pack("<I", len(text)) + text for text in (b"a", b"", b"\xff\x00"))
    assert read_strings("x", [3, 1], memoryview(content)).tolist() == [[b"a"], [b""], [b"\xff\x00"]]
