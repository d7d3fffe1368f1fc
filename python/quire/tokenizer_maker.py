"""Makes the tokenizer.json of folders that have none: of vocab.json with merges.txt, or of tokenizer.model.

What transformers makes of them, for the classes that models come with in such a form. All others are refused
with the command that makes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from quire.errors import ModelNotFound, UnsupportedModel, describe
from quire.model_files import TOKENIZER_LIMIT, parse_json_object, read_bytes, read_json_object, read_text

_VOCABULARY, _MERGES, _SENTENCE_PIECE = "vocab.json", "merges.txt", "tokenizer.model"
SOURCES = (_VOCABULARY, _MERGES, _SENTENCE_PIECE)

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# By tokenizer_class, else by model_type: the tokens that the class has unasked, and how it splits a text
# (None: as GPT-2).
_GPT2 = (dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"), None)
_QWEN2 = (dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"), _QWEN2_SPLIT)
_BYTE_LEVEL: Mapping[str, tuple[Mapping[str, str], str | None]] = {
    "GPT2Tokenizer": _GPT2,
    "Qwen2Tokenizer": _QWEN2,
    "gpt2": _GPT2,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2,
}
_LLAMA = ("LlamaTokenizer", "llama")
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

_BPE, _CONTROL, _USER_DEFINED = 2, 3, 4  # of SentencePiece: a model_type, and types of pieces
_MARK = "▁"
_MAX_PIECE = 512  # bytes: every way to cut one in two is tried; usual ones have up to 64


def make_tokenizer(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """What `config`, tokenizer_config.json, need not say; and the tokenizer.json. Raises ModelError."""
    name = config.get("tokenizer_class")
    if name is None and (folder / "config.json").exists():
        name = read_json_object(folder / "config.json").get("model_type")
    kind = str(name).removesuffix("Fast")
    try:
        if (folder / _VOCABULARY).exists() and (folder / _MERGES).exists():
            if kind in _BYTE_LEVEL:
                return _of_vocabulary(folder, config, *_BYTE_LEVEL[kind])
            raise _unknown(folder, f"{_VOCABULARY} and {_MERGES}", name, _BYTE_LEVEL)
        if (folder / _SENTENCE_PIECE).exists():
            if kind in _LLAMA:
                return _of_sentence_piece(folder, config)
            raise _unknown(folder, _SENTENCE_PIECE, name, _LLAMA)
    except (UnsupportedModel, OSError):
        raise
    except Exception as error:  # `tokenizers` has no class of its own for what the files can get wrong
        raise UnsupportedModel(f"{folder}: no tokenizer can be made of its files: {error}") from None
    others = ("tekken.json", "*.tiktoken", "*.model")
    found = next((path.name for other in others for path in sorted(folder.glob(other))), None)
    allowed = f"a folder with a tokenizer.json{f' ({found} is there: {_command(folder)})' if found else ''}"
    raise ModelNotFound(f"tokenizer.json: not found in {folder}; allowed: {allowed}")


def _unknown(folder: Path, files: str, name: Any, known: Any) -> UnsupportedModel:
    return UnsupportedModel(
        f"{folder}: got {files} of tokenizer_class {describe(name)}; allowed: {', '.join(known)}, or a "
        f"tokenizer.json ({_command(folder)})"
    )


def _command(folder: Path) -> str:
    place = repr(str(folder))
    program = (
        f"from transformers import AutoTokenizer as A; A.from_pretrained({place}).save_pretrained({place})"
    )
    return f'after `pip install transformers sentencepiece tiktoken protobuf`: `python -c "{program}"`'


def _of_vocabulary(
    folder: Path, config: Mapping[str, Any], defaults: Mapping[str, str], split: str | None
) -> tuple[dict[str, Any], bytes]:
    file = folder / _VOCABULARY
    vocabulary = parse_json_object(read_bytes(file, TOKENIZER_LIMIT), file)
    lines = read_text(folder / _MERGES, TOKENIZER_LIMIT).split("\n")
    merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [(left, right) for left, right in merges]))
    space = config.get("add_prefix_space") is True
    last = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=split is None)
    tokenizer.pre_tokenizer = last
    if split is not None:
        tokenizer.normalizer = normalizers.NFC()
        first = pre_tokenizers.Split(Regex(split), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tokenizer.decoder = decoders.ByteLevel()
    return dict(defaults), tokenizer.to_str().encode()


def _of_sentence_piece(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Merges in the order of the pieces, as LlamaTokenizer makes them."""
    pieces: list[tuple[str, int]] = []
    kind = None
    for field, value in _members(read_bytes(folder / _SENTENCE_PIECE, TOKENIZER_LIMIT)):
        if field == 1:
            piece = dict(_members(value))
            if len(piece[1]) > _MAX_PIECE:
                raise ValueError(f"a piece has {len(piece[1])} bytes, more than {_MAX_PIECE}")
            pieces.append((piece[1].decode(), piece.get(3, 1)))
        elif field == 2:
            kind = dict(_members(value)).get(3, 1)
    if kind != _BPE:
        raise UnsupportedModel(f"{folder / _SENTENCE_PIECE}: got model_type {kind}; allowed: {_BPE} (BPE)")
    vocabulary = {piece: token_id for token_id, (piece, _) in enumerate(pieces)}
    bpe = models.BPE(vocabulary, _merges(vocabulary), fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    has_space = config.get("add_prefix_space") is not False
    scheme = "never" if not has_space else "always" if config.get("legacy") else "first"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_space else steps)
    added = [
        {"content": piece, "normalized": False, "special": kind == _CONTROL}
        for piece, kind in pieces
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {**_LLAMA_TOKENS, "additional_special_tokens": added}, tokenizer.to_str().encode()


def _merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to build a piece of two, in the order in which they are tried."""
    found = []
    for piece, rank in vocabulary.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(rank, len(left), len(right), left, right) for left, right in known]
    found.sort(key=lambda each: each[:3])
    return [(left, right) for *_, left, right in found]


def _members(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message: integers, or bytes."""
    at = 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError(f"{_SENTENCE_PIECE} is no protobuf message")

    while at < len(message):
        key = integer()
        if key & 7 == 0:
            yield key >> 3, integer()
            continue
        size = integer() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        if at + size > len(message):
            raise ValueError(f"{_SENTENCE_PIECE} is cut off")
        yield key >> 3, message[at : at + size]
        at += size
