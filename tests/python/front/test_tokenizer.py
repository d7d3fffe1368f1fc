"""The token table decodes exactly as `tokenizers` does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core
from quire.errors import ModelNotFound, UnsupportedModel
from quire.tokenizer import Tokenizer as QuireTokenizer
from quire.tokenizer import build_table
from sample_tokenizers import (
    TOKENIZERS,
    train_byte_level,
    train_metaspace,
    train_word_level,
    with_decoder,
    write_model,
)
from tokenizers import AddedToken, Tokenizer, decoders, models

TRAINED = {name: make() for name, make in TOKENIZERS.items()}
TABLES = {name: build_table(tokenizer) for name, tokenizer in TRAINED.items()}
by_name = pytest.mark.parametrize("name", list(TRAINED))


def ids_of(name: str) -> st.SearchStrategy[list[int]]:
    """Random ids, also unknown ones behind the vocabulary; often of few kinds, so that runs come up."""
    size = len(TABLES[name])
    any_id = st.integers(0, size + 3)
    few = st.lists(any_id, min_size=1, max_size=4).flatmap(
        lambda some: st.lists(st.sampled_from(some), max_size=20)
    )
    return st.lists(any_id, max_size=30) | few


@by_name
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=examples(300))
def test_decodes_as_the_library(name: str, data: st.DataObject, skip: bool) -> None:
    """table.decode(ids) is Tokenizer.decode(ids) for any ids."""
    ids = data.draw(ids_of(name))
    expected = TRAINED[name].decode(ids, skip_special_tokens=skip)
    assert expected == TABLES[name].decode(ids, is_first=True, skip_special_tokens=skip)


@by_name
def test_each_token_alone(name: str) -> None:
    """Every id of the vocabulary decodes as in the library, alone, twice and behind another token."""
    table, tokenizer = TABLES[name], TRAINED[name]
    for token_id in range(len(table) + 1):
        for ids in ([token_id], [token_id, token_id], [5, token_id]):
            for skip in (True, False):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == table.decode(
                    ids, skip_special_tokens=skip
                )


@by_name
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=examples(200))
def test_continues_a_prompt(name: str, data: st.DataObject, skip: bool) -> None:
    """Behind a prompt that ends at a character, the text is decode(prompt + ids) minus decode(prompt)."""
    tokenizer, table = TRAINED[name], TABLES[name]
    prompt = tokenizer.encode(data.draw(st.sampled_from(["def f", "Straße ", "敏捷的", "a  b", "один"]))).ids
    ids = tokenizer.encode(data.draw(st.sampled_from([" fox", "jumps", "狐狸 x", "ö", "\n\n", "  two"]))).ids
    has_text = any(table.contributes(token_id, skip) for token_id in prompt)
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    whole = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    assert whole.startswith(before)
    assert whole[len(before) :] == table.decode(ids, is_first=not has_text, skip_special_tokens=skip)


def test_holes_and_unknown_ids() -> None:
    """Ids without a token take no part in the text, as in the library."""
    table = TABLES["word_level_holes"]
    tokenizer = TRAINED["word_level_holes"]
    holes = [token_id for token_id in range(len(table)) if tokenizer.id_to_token(token_id) is None]
    assert len(holes) >= len(table) // 2 - 1
    assert {table.flags(token_id) for token_id in [*holes, len(table), 10**6]} == {_core.TOKEN_UNKNOWN}


def test_flags() -> None:
    """Special tokens and byte tokens are marked as such."""
    table, tokenizer = TABLES["metaspace_fallback"], TRAINED["metaspace_fallback"]
    assert table.flags(tokenizer.token_to_id("<s>")) == _core.TOKEN_SPECIAL
    assert table.flags(tokenizer.token_to_id("<0x0A>")) == _core.TOKEN_BYTE
    assert table.text(tokenizer.token_to_id("<0x0A>")) == b"\n"
    assert table.flags(tokenizer.token_to_id("<0xZZ>")) == 0
    assert table.text(tokenizer.token_to_id("▁")) == b" "


def test_added_tokens_of_byte_level() -> None:
    """A token inside the byte alphabet is bytes; any other character makes it its own text."""
    table, tokenizer = TABLES["byte_level"], TRAINED["byte_level"]
    assert table.text(tokenizer.token_to_id("<tool call>")) == b"<tool call>"
    assert table.text(tokenizer.token_to_id("日本")) == "日本".encode()
    assert table.text(tokenizer.token_to_id("é")) == b"\xe9"
    assert table.flags(tokenizer.token_to_id("<|im end|>")) == _core.TOKEN_SPECIAL
    assert table.flags(tokenizer.token_to_id("<tool call>")) == 0


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.BPEDecoder(), "decoder: got BPEDecoder; allowed: ByteLevel, "),
        (decoders.CTC(), "decoder: got CTC; "),
        (
            decoders.Sequence([decoders.ByteLevel(), decoders.WordPiece()]),
            "got Sequence[ByteLevel, WordPiece]; ",
        ),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
            'got Sequence[Fuse, Replace({"pattern": {"String": "a"}, "content": "b"})]; ',
        ),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), "Strip("),
        (decoders.Strip(" ", 1, 0), "got Strip("),
    ],
)
def test_other_decoders_are_refused(tmp_path: Path, decoder: decoders.Decoder, named: str) -> None:
    """A decoder without an exact table is refused by name."""
    folder = write_model(tmp_path, with_decoder(train_word_level(), decoder))
    with pytest.raises(UnsupportedModel) as caught:
        build_table(QuireTokenizer(folder).raw)
    assert named in str(caught.value)


def test_metaspace_with_spaces_of_its_own_is_refused() -> None:
    """A token with a real space cannot be told from a mark, where marks are dropped."""
    tokenizer = train_metaspace("always")
    tokenizer.add_tokens([AddedToken("two words")])
    with pytest.raises(UnsupportedModel, match="'two words'"):
        build_table(tokenizer)
    tokenizer = train_metaspace("never")
    tokenizer.add_tokens([AddedToken("two words")])
    assert build_table(tokenizer).text(tokenizer.token_to_id("two words")) == b"two words"


def test_empty_vocabulary() -> None:
    """A tokenizer without tokens makes a table without tokens."""
    assert len(build_table(Tokenizer(models.BPE()))) == 0


def test_encoding_neither_cuts_nor_pads(tmp_path: Path) -> None:
    """Settings of training that a tokenizer.json carries do not reach requests."""
    tokenizer = train_byte_level()
    expected = tokenizer.encode("a longer text than four tokens").ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    quire = QuireTokenizer(write_model(tmp_path, tokenizer))
    assert expected == quire.encode("a longer text than four tokens")
    assert [expected, quire.encode("b")] == quire.encode_batch(["a longer text than four tokens", "b"])
    assert quire.decode(expected) == "a longer text than four tokens"


def test_missing_or_broken_files(tmp_path: Path) -> None:
    """A missing or unreadable tokenizer.json is named."""
    with pytest.raises(ModelNotFound, match=r"^tokenizer\.json: not found in "):
        QuireTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json: tokenizers cannot read it"):
        QuireTokenizer(tmp_path)


def test_imports_are_light() -> None:
    """The tokenizer stage starts without torch, transformers and jinja2."""
    program = (
        "import sys, quire.tokenizer, quire.config, quire.triton.tokenizer_stage;"
        "heavy = ('torch', 'transformers', 'huggingface_hub', 'jinja2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
