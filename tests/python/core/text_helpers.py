"""Small tokenizers, each with its TokenTable built by hand, and what they say a text is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from quire import _core
from tokenizers import AddedToken, Tokenizer, decoders, models

SPACE = "\u2581"  # stands for a space in the vocabularies of sentencepiece


def byte_chars() -> dict[int, str]:
    """ByteLevel's alphabet: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in chars:
            chars[byte] = chr(0x100 + len(chars) - len(printable))
    return chars


@dataclass
class Case:
    """A tokenizer of Hugging Face and the table that must agree with it."""

    name: str
    tokenizer: Tokenizer
    table: _core.TokenTable
    vocab_size: int  # ids past the vocabulary included: they have no token
    prompt_ids: list[int]  # tokens after which a prompt ends at a complete character

    def text(self, prompt: list[int], output: list[int], skip_special: bool) -> str:
        """decode(prompt + output) minus decode(prompt)."""
        whole = self.tokenizer.decode(prompt + output, skip_special_tokens=skip_special)
        before = self.tokenizer.decode(prompt, skip_special_tokens=skip_special)
        assert whole.startswith(before)
        return whole[len(before) :]

    def contributing(self, ids: list[int], skip_special: bool) -> list[int]:
        return [i for i in ids if self.table.contributes(i, skip_special)]

    def is_open(self, ids: list[int], skip_special: bool) -> bool:
        """Whether `ids` end inside a character that the next id may complete."""
        kept = self.contributing(ids, skip_special)
        if self.table.kind == _core.DecoderKind.BYTE_LEVEL:
            return unfinished(b"".join(self.table.text(i) for i in kept)[-3:]) > 0
        run = b""
        while kept and self.table.flags(kept[-1]) & _core.TOKEN_BYTE:
            run = self.table.text(kept.pop()) + run
        size = unfinished(run[-3:])
        return size > 0 and "\ufffd" not in run[:-size].decode(errors="replace")  # not broken for good

    def cuts(self, ids: list[int], skip_special: bool) -> list[int]:
        """All n where the text may be cut in two that decode on their own, whatever comes after `ids`."""
        return [n for n in range(len(ids) + 1) if self.can_cut(ids[:n], ids[n:], skip_special)]

    def can_cut(self, before: list[int], after: list[int], skip_special: bool) -> bool:
        kept = self.contributing(before, skip_special)
        if kept and self.table.flags(kept[-1]) & _core.TOKEN_BYTE:
            following = self.contributing(after, skip_special)
            return bool(following) and not self.table.flags(following[0]) & _core.TOKEN_BYTE
        return not self.is_open(before, skip_special)


@cache
def unfinished(tail: bytes) -> int:
    """How many bytes at the end of tail are the start of one character: tried by finishing it."""
    for size in range(len(tail), 0, -1):
        for second in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF):
            for missing in range(1, 4):
                try:
                    character = (tail[-size:] + bytes([second]) + b"\x80" * (missing - 1)).decode()
                except UnicodeDecodeError:
                    continue
                if len(character) == 1:
                    return size
    return 0


def table_of(
    tokenizer: Tokenizer,
    size: int,
    kind: _core.DecoderKind,
    to_bytes: dict[str, int] | None = None,
    separator: str = "",
    strip_left: int = 0,
    has_byte_tokens: bool = False,
) -> _core.TokenTable:
    texts, flags = [], []
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for i in range(size):
        token = tokenizer.id_to_token(i)
        flag = _core.TOKEN_SPECIAL if i in special else 0
        if token is None:
            texts.append(b"")
            flag |= _core.TOKEN_UNKNOWN
        elif to_bytes is not None:
            known = all(c in to_bytes for c in token)
            texts.append(bytes(to_bytes[c] for c in token) if known else token.encode())
        elif has_byte_tokens and re.fullmatch("<0x[0-9A-F]{2}>", token):
            texts.append(bytes([int(token[3:5], 16)]))
            flag |= _core.TOKEN_BYTE
        else:
            replaced = token if kind >= _core.DecoderKind.JOINED else token.replace(SPACE, " ")
            texts.append(replaced.encode())
        flags.append(flag)
    if kind == _core.DecoderKind.WORD_PIECE:
        tokens = [text.decode() for text in texts]
        rest = [token[2:] if token.startswith("##") else f" {token}" for token in tokens]
        texts = [text.encode() for text in rest + tokens]
    return _core.TokenTable(kind, texts, flags, separator, strip_left)


def finish(name: str, vocab: list[str], decoder: object, **table: object) -> Case:
    byte_fallback = name == "byte fallback"
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.BPE(ids, [], byte_fallback=byte_fallback, unk_token=None))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    size = len(vocab) + 3 + 2  # two ids past the end
    built = table_of(tokenizer, size, **table)
    prompt_ids = [
        i
        for i in range(size)
        if not built.flags(i) & _core.TOKEN_BYTE and unfinished(built.text(i)[-3:]) == 0
    ]
    return Case(name, tokenizer, built, size, prompt_ids)


WORDS = ["a", "b", "ab", "ba", "aab", "bb", "é", "€", "x€y", "😀", ".", "", "aa"]


def byte_level() -> Case:
    chars = byte_chars()
    pieces = [word.encode() for word in WORDS if word] + [
        b" a",
        b"  ",
        b"\n\n",
        b"a\xe2",
        b"\x82",
        b"\x82\xac",
        b"\xac b",
        b"\xf0\x9f\x98",
        b"\x80\xe2\x82",
        b"\xed\xa0",
        b"\xff\xfe",
    ]
    vocab = ["".join(chars[b] for b in piece) for piece in [bytes([b]) for b in range(256)] + pieces]
    vocab = [*dict.fromkeys(vocab), f"raw{SPACE}"]  # not in the alphabet: stands for itself
    return finish(
        "byte level",
        vocab,
        decoders.ByteLevel(),
        kind=_core.DecoderKind.BYTE_LEVEL,
        to_bytes={c: b for b, c in chars.items()},
    )


SENTENCE_PIECES = [*WORDS, SPACE, 2 * SPACE, f"{SPACE}a", f"{SPACE}ab", f"b{SPACE}", f"a{SPACE}b", 3 * SPACE]


def byte_fallback() -> Case:
    vocab = [f"<0x{b:02X}>" for b in range(256)] + SENTENCE_PIECES
    steps = [
        decoders.Replace(SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    return finish(
        "byte fallback",
        vocab,
        decoders.Sequence(steps),
        kind=_core.DecoderKind.BYTE_FALLBACK,
        strip_left=_core.STRIP_ONE_SPACE,
        has_byte_tokens=True,
    )


def metaspace() -> Case:
    return finish(
        "metaspace",
        SENTENCE_PIECES,
        decoders.Metaspace(),
        kind=_core.DecoderKind.BYTE_FALLBACK,
        strip_left=_core.STRIP_FIRST_TOKEN,
    )


def metaspace_never() -> Case:
    return finish(
        "metaspace never",
        SENTENCE_PIECES,
        decoders.Metaspace(prepend_scheme="never"),
        kind=_core.DecoderKind.BYTE_FALLBACK,
    )


def joined() -> Case:
    return finish("joined", WORDS, None, kind=_core.DecoderKind.JOINED, separator=" ")


def word_piece() -> Case:
    pieces = ["##a", "##ab", "##é", "##😀", "##.", "##", "###", "a##b"]
    return finish(
        "word piece",
        WORDS + pieces,
        decoders.WordPiece(cleanup=False),
        kind=_core.DecoderKind.WORD_PIECE,
    )


MADE = (byte_level(), byte_fallback(), metaspace(), metaspace_never(), joined(), word_piece())
CASES = {case.name: case for case in MADE}
