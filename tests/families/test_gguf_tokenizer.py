"""Tokenizers made from GGUF files: ids and texts are those of transformers' conversion, or where it leaves
something out those of the tokenizer that the vocabulary came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf import GGUFWriter, TokenType
from quire.errors import UnsupportedModel
from quire.gguf.header import read_header
from quire.gguf.tokenizer import tokenizer_config, tokenizer_of
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXTS = [
    "The quick brown fox can't jump over 12345 lazy dogs.",
    "  two spaces,\n\n\tnewlines   and tabs \r\n",
    "def f(n):\n    return n if n < 2 else f(n - 1)\n",
    "Die Straße führt über die Brücke; Größe zählt.",
    "敏捷的棕色狐狸 いろはにほへと 👩‍👩‍👧‍👦",
    "<s>inside</s> <|im_start|>user\nHi<|im_end|>",
    "",
    "a",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def write(file: Path, tokens: list[str], architecture: str, **values: Any) -> Path:
    """values: keys below tokenizer.ggml."""
    writer = GGUFWriter(file, architecture)
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(64)  # transformers makes a config first
    writer.add_head_count_kv(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(tokens)
    types = values.pop("types", None)
    default = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    writer.add_token_types(types or default)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in values.items():
        writer.add_key_value(f"tokenizer.ggml.{key}", *_typed(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _typed(value: Any) -> tuple[Any, ...]:
    from gguf import GGUFValueType

    if isinstance(value, list):
        return value, GGUFValueType.ARRAY
    return value, {str: GGUFValueType.STRING, bool: GGUFValueType.BOOL}[type(value)]


def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _tokens_and_merges(tokenizer)


def sentence_piece() -> list[str]:
    """Tokens; their order is that of the merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:4], trainer)
    return _tokens_and_merges(tokenizer)[0]


def _tokens_and_merges(tokenizer: tokenizers.Tokenizer) -> tuple[list[str], list[str]]:
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(pair) for pair in merges]


def assert_equal(file: Path, texts: list[str]) -> None:
    ours = tokenizer_of(read_header(file))
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in texts:
        ids = theirs(text).input_ids
        assert ours.encode(text).ids == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_byte_level(tmp_path: Path, pre: str) -> None:
    tokens, merges = byte_level()
    file = tmp_path / "x.gguf"
    write(file, tokens, "llama", model="gpt2", pre=pre, merges=merges, add_bos_token=False)
    assert_equal(file, TEXTS)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2"])
def test_sentence_piece(tmp_path: Path, architecture: str) -> None:
    tokens = sentence_piece()
    scores = [float(-i) for i in range(len(tokens))]
    types = [
        TokenType.CONTROL
        if token in SPECIAL
        else TokenType.BYTE
        if token.startswith("<0x")
        else TokenType.NORMAL
        for token in tokens
    ]
    if architecture == "gemma2":
        tokens = [
            token.replace("▁", " ") if not token.strip("▁") and len(token) > 1 else token for token in tokens
        ]
    file = write(
        tmp_path / "x.gguf",
        tokens,
        architecture,
        model="llama",
        scores=scores,
        add_bos_token=False,
        types=types,
    )
    assert_equal(file, TEXTS)


def test_digits_by_themselves(tmp_path: Path) -> None:
    """SmolLM's tokenizer never has two digits in a token."""
    tokens, merges = byte_level()
    file = write(tmp_path / "x.gguf", tokens, "llama", model="gpt2", pre="smollm", merges=merges)
    tokenizer = tokenizer_of(read_header(file))
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("12345").ids] == list("12345")
    assert tokenizer.encode(TEXTS[2].replace("2", "").replace("1", "")).ids


def test_added_tokens(tmp_path: Path) -> None:
    """Tokens of the user stay whole and are text, padding is none; BOS and EOS come where it says so."""
    tokens, merges = byte_level()
    padded = [*tokens, "<think>", "[PAD421]"]
    special = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    types = [*special, TokenType.USER_DEFINED, TokenType.UNUSED]
    values: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "merges": merges, "types": types}
    file = write(tmp_path / "x.gguf", padded, "llama", add_bos_token=True, add_eos_token=True, **values)
    tokenizer = tokenizer_of(read_header(file))
    assert tokenizer.encode("<think>").ids == [1, padded.index("<think>"), 2]
    assert tokenizer.decode([1, padded.index("<think>"), 2]) == "<think>"
    assert tokenizer.id_to_token(len(padded) - 1) is None


def test_bos_where_a_file_does_not_say(tmp_path: Path) -> None:
    """SentencePiece's and Llama 3's texts begin with it, as in llama.cpp; transformers' versions differ."""
    tokens, merges = byte_level()
    values: dict[str, Any] = {"model": "gpt2", "merges": merges}
    for pre, begins in (("gpt-2", False), ("qwen2", False), ("llama-bpe", True)):
        file = write(tmp_path / f"{pre}.gguf", tokens, "llama", pre=pre, **values)
        assert (tokenizer_of(read_header(file)).encode("a").ids[0] == 1) == begins
    pieces = sentence_piece()
    scores = [float(-i) for i in range(len(pieces))]
    file = write(tmp_path / "pieces.gguf", pieces, "llama", model="llama", scores=scores)
    assert tokenizer_of(read_header(file)).encode("a").ids[0] == 1


def test_what_is_not_known(tmp_path: Path) -> None:
    """A pre-tokenizer stands for code: one that is not known is refused by name."""
    tokens, merges = byte_level()
    file = write(tmp_path / "x.gguf", tokens, "llama", model="gpt2", pre="viking", merges=merges)
    with pytest.raises(
        UnsupportedModel, match=r'x\.gguf: tokenizer\.ggml\.pre: got "viking"; allowed: llama3,'
    ):
        tokenizer_of(read_header(file))
    file = write(tmp_path / "y.gguf", tokens, "llama", model="rwkv")
    with pytest.raises(UnsupportedModel, match=r'tokenizer\.ggml\.model: got "rwkv"; allowed: gpt2, llama'):
        tokenizer_of(read_header(file))
    file = write(tmp_path / "z.gguf", tokens, "llama", model="gpt2", pre="gpt-2", merges=["zz yy"])
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.merges: .*out of vocabulary"):
        tokenizer_of(read_header(file))


def test_the_names_of_special_tokens(tmp_path: Path) -> None:
    tokens, merges = byte_level()
    file = write(tmp_path / "x.gguf", tokens, "llama", model="gpt2", pre="gpt-2", merges=merges)
    expected = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer_config(read_header(file)) == expected
