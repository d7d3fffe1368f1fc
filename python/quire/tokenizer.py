"""Text to ids, and the table by which the C++ side turns ids into text. Imports `tokenizers` only.

The table says what each id contributes to the text. It is exact: `TokenTable.decode(ids)` equals
`tokenizers.Tokenizer.decode(ids)` for every list of ids, or the decoder is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tokenizers

from quire.chat import ChatTemplates
from quire.errors import InvalidArgument, QuireError, UnsupportedModel, describe
from quire.fingerprint import fingerprint
from quire.sampling_params import MAX_BAD_WORD_IDS, MAX_BAD_WORDS
from quire.tokenizer_bounds import MAX_REPLACES, check_growth, check_ids, check_size, replaced, steps_of
from quire.tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    from quire import _core

SUPPORTED_DECODERS = (
    "ByteLevel, Metaspace, WordPiece, Fuse, Sequence[Replace, ByteFallback, Fuse, Strip of one leading "
    "space], none"
)

# What `tokenizers` reads as a byte: hexadecimal digits as Rust parses them, which allows a plus sign.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")

_LLAMA = re.compile(r"(Replace )*(?P<bytes>ByteFallback )?(Fuse (?P<strip>Strip )?)?")

_MAX_LEADING = 8  # special tokens that a tokenizer puts before a text: mostly one


T = TypeVar("T")


class EncodingError(QuireError):
    """`tokenizers` could not do something; its own exceptions name neither the text nor a field."""

    text = ""  # that could not be encoded


class Tokenizer:
    """A model's tokenizer, from all of its files (quire.tokenizer_files). Encoding adds special tokens as the
    model asks (BOS), no padding.

    Raises EncodingError where `tokenizers` fails, whatever it raises.
    """

    def __init__(self, folder: Path | str, files: TokenizerFiles | None = None) -> None:
        """`files`: what they held when somebody read them; default: what they hold now."""
        path = Path(folder) / "tokenizer.json"
        self.files = files = files or TokenizerFiles.read(Path(folder))
        try:
            self.raw = _run(tokenizers.Tokenizer.from_buffer, files.content)
        except EncodingError as error:
            raise UnsupportedModel(f"{path}: tokenizers cannot read it: {error}") from error
        try:
            # First: with ids far apart, even writing the tokenizer as JSON takes minutes.
            check_ids(_ids(self.raw))
            if self.raw.normalizer is not None:
                check_growth(json.loads(self.raw.normalizer.__getstate__()))
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{path}: {error}") from None
        alone = repr(self.raw.get_added_tokens_decoder())
        try:
            self.warnings = tuple(f"{folder}: {warning}" for warning in files.complete(self.raw))
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{folder}: {error}") from None
        added = repr(self.raw.get_added_tokens_decoder())
        # Identifies the files that this was read from: ids mean the same where it is the same.
        self.fingerprint = fingerprint(files.content + (added.encode() if added != alone else b""))
        self.special_tokens = files.special_tokens
        # Files may carry the settings of their training.
        self.raw.no_truncation()
        self.raw.no_padding()

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a sequence, as the tokenizer's files say."""
        token: int | None = self.raw.token_to_id(self.special_tokens.get("eos_token", ""))
        return token

    def chat_templates(self, *, trusts_requests: bool) -> ChatTemplates:
        """The model's own; `trusts_requests`: requests may bring others."""
        return ChatTemplates(
            templates=self.files.templates,
            special_tokens=self.special_tokens,
            trusts_requests=trusts_requests,
        )

    def vocabulary(self, model: str) -> str:
        """Whose ids these are, as it travels with them: the fingerprint, then the name of `model` (a setting,
        perhaps a path, of which clients see the last part only) for messages."""
        return f"{self.fingerprint} {Path(model).name or model}"

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        return [_ids_of(encoding) for encoding in self._encode(texts, add_special_tokens)]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[tokenizers.Encoding]:
        try:
            # The fast form leaves out offsets, which nothing here reads.
            encode = self.raw.encode_batch_fast
            return _run(encode, list(texts), add_special_tokens=add_special_tokens)
        except EncodingError as error:
            if len(texts) == 1:
                error.text = texts[0]
                raise
        # The tokenizer does not say which one it was.
        return [encoding for text in texts for encoding in self._encode([text], add_special_tokens)]

    def unknown_to_the_model(
        self, name: str, token_id: int, vocab_size: int, at: str = ""
    ) -> InvalidArgument:
        """The error of a text, which the client calls `name`, that holds a token the model has no weights
        for. `at`: which of several texts."""
        token = self.raw.id_to_token(token_id)
        allowed = f"text of tokens that the model has: ids 0 to {vocab_size - 1} (vocab_size)"
        return InvalidArgument(name, f"the token {describe(token)}, whose id is {token_id}{at}", allowed)

    def truncate(
        self, prompt: str | Sequence[int], ids: list[int], limit: int, *, add_special_tokens: bool = True
    ) -> list[int]:
        """The last of a prompt's ids, `limit` at most; a text keeps the special tokens that encode() adds.
        Raises InvalidArgument where these alone are more."""
        if len(ids) <= limit:
            return ids
        if not isinstance(prompt, str) or not add_special_tokens:
            return ids[-limit:]
        num_special = self.raw.num_special_tokens_to_add(False)
        if limit <= num_special:
            allowed = f"at least {num_special + 1} (the tokenizer adds special tokens)"
            raise InvalidArgument("truncate_prompt_tokens", str(limit), allowed)
        [encoding] = self._encode([prompt], False)
        encoding.truncate(limit - num_special, direction="left")
        return _ids_of(self.raw.post_process(encoding))

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of each word, with a space before it and without: what a text may not contain."""
        sequences: list[tuple[int, ...]] = []
        for word in words:
            bare = word.removeprefix(" ") or word
            try:
                encodings = self._encode([bare, f" {bare}"], False)
            except EncodingError as error:
                allowed = f"text that the tokenizer knows ({error})"
                raise InvalidArgument("bad_words", describe(word), allowed) from None
            found = [tuple(encoding.ids) for encoding in encodings if encoding.ids]
            if not found:
                raise InvalidArgument("bad_words", describe(word), "text of at least one token")
            sequences += found
        unique = tuple(dict.fromkeys(sequences))
        if len(unique) > MAX_BAD_WORDS:
            allowed = f"at most {MAX_BAD_WORDS} (each word with a space in front and without)"
            raise InvalidArgument("bad_words", f"{len(unique)} sequences of tokens", allowed)
        num_ids = sum(map(len, unique))
        if num_ids > MAX_BAD_WORD_IDS:
            allowed = f"at most {MAX_BAD_WORD_IDS} tokens together"
            raise InvalidArgument("bad_words", f"{num_ids} tokens", allowed)
        return unique

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.raw.decode(list(ids), skip_special_tokens=skip_special_tokens)


def _run(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Call a function of `tokenizers`. It raises bare Exception, TypeError for text that is no Unicode, and
    PanicException, which is no Exception, for a bug in itself or a regular expression that runs away."""
    try:
        return function(*arguments, **keywords)
    except MemoryError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not (is_panic or isinstance(error, Exception)):
            raise  # Control-C
        # A panic tells of files and threads of its own.
        problem = "it failed" if is_panic else f"{error}".partition("\n")[0]
        raise EncodingError(problem) from error


def _ids_of(encoding: tokenizers.Encoding) -> list[int]:
    """The ids, with the special tokens that were put before the text left out where the text itself begins
    with the same ones: a prompt that spells its BOS gets one, not two."""
    ids: list[int] = encoding.ids
    if len(ids) < 2 or ids[0] not in ids[1:_MAX_LEADING]:
        return ids
    is_added = encoding.special_tokens_mask
    num_added = is_added.index(0) if 0 in is_added else 0
    begins_with_them = ids[num_added : 2 * num_added] == ids[:num_added]
    return ids[num_added:] if begins_with_them and not any(is_added[num_added : 2 * num_added]) else ids


def build_table(tokenizer: tokenizers.Tokenizer) -> _core.TokenTable:
    """The table of a tokenizer. UnsupportedModel names a decoder that has no exact table."""
    from quire import _core

    plan = plan_of(tokenizer)
    tokens = _tokens_by_id(tokenizer)
    special = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}

    texts: list[bytes] = []
    size = 0
    flags: list[int] = []
    for token in tokens:
        if token is None:
            texts.append(b"")
            flags.append(_core.TOKEN_UNKNOWN)
            continue
        text, is_byte = plan.text_of(token)
        texts.append(text)
        size = check_size(size + len(text))
        flags.append((_core.TOKEN_SPECIAL if token in special else 0) | (_core.TOKEN_BYTE if is_byte else 0))
    if plan.first_text_of:
        texts += [b"" if token is None else plan.first_text_of(token) for token in tokens]
    kind = getattr(_core.DecoderKind, plan.kind)
    return _core.TokenTable(kind, texts, flags, plan.separator, getattr(_core, plan.strip_left))


def check_vocabulary(tokenizer: tokenizers.Tokenizer, vocab_size: int, file: Path) -> list[str]:
    """Compares a tokenizer with its model. Raises UnsupportedModel where ordinary tokens are outside of the
    model's vocabulary: it is another model's tokenizer. Added tokens may be, as in many checkpoints: a prompt
    with one is refused, which is worth a warning."""
    ordinary = tokenizer.get_vocab(with_added_tokens=False)
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    beyond = [token for token, token_id in ordinary.items() if token_id >= vocab_size and token not in added]
    if beyond:
        problem = f"{len(beyond)} tokens with ids of at least {vocab_size}, such as {describe(beyond[0])}"
        raise UnsupportedModel(f"{file}: got {problem}; allowed: ids below vocab_size, as config.json says")
    return [
        f"{file}: added token {describe(token.content)} has id {token_id}, but the model only ids below "
        f"{vocab_size}: a prompt with it is refused"
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token_id >= vocab_size
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a decoder maps onto TokenTable."""

    kind: str  # a name of DecoderKind
    text_of: Callable[[str], tuple[bytes, bool]]  # token -> its text, whether it is a byte token
    separator: str = ""
    strip_left: str = "STRIP_NOTHING"  # a constant of _core
    first_text_of: Callable[[str], bytes] | None = None  # of the text's first token, where it differs


def plan_of(tokenizer: tokenizers.Tokenizer) -> Plan:
    """The plan of a tokenizer's decoder, or UnsupportedModel naming it."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    if decoder is None:
        return Plan(kind="JOINED", text_of=_plain, separator=" ")
    steps = list(steps_of(decoder))
    kinds = [step["type"] for step in steps]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return Plan(kind="BYTE_LEVEL", text_of=_byte_level)
    if kinds in (["Metaspace"], ["Metaspace", "Fuse"]):
        return _metaspace(steps[0], tokenizer)
    if kinds in (["WordPiece"], ["WordPiece", "Fuse"]):
        return _word_piece(steps[0])
    if plan := _llama_sequence(steps):
        return plan
    raise UnsupportedModel(f"decoder: got {_name(decoder)}; allowed: {SUPPORTED_DECODERS}")


def _tokens_by_id(tokenizer: tokenizers.Tokenizer) -> list[str | None]:
    """tokens[id]: what decode() sees for each id; None where the vocabulary has a hole."""
    ids = _ids(tokenizer)
    check_ids(ids)
    return [tokenizer.id_to_token(token_id) for token_id in range(max(ids, default=-1) + 1)]


def _ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
    return {
        *tokenizer.get_vocab(with_added_tokens=True).values(),
        *tokenizer.get_vocab(with_added_tokens=False).values(),
        *tokenizer.get_added_tokens_decoder(),
    }


def _name(decoder: dict[str, Any]) -> str:
    if decoder["type"] == "Sequence":
        return f"Sequence[{', '.join(_name(step) for step in decoder['decoders'])}]"
    if decoder["type"] in ("Replace", "Strip", "Metaspace"):
        settings = {key: value for key, value in decoder.items() if key != "type"}
        return f"{decoder['type']}({json.dumps(settings, ensure_ascii=False)})"
    return str(decoder["type"])


def _plain(token: str) -> tuple[bytes, bool]:
    return token.encode(), False


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> tuple[bytes, bool]:
    # A token with any other character (an added token such as "<|end of text|>") stands for its own UTF-8.
    try:
        return bytes(BYTE_OF[character] for character in token), False
    except KeyError:
        return _plain(token)


def _metaspace(step: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> Plan:
    """Each mark is a space, but nothing in the text's first token (unless prepend_scheme is "never")."""
    mark = step["replacement"]
    strips = step["prepend_scheme"] != "never"
    for token in _tokens_by_id(tokenizer):
        # The table drops every space of the first token, and could not tell a mark from a space of its own.
        if strips and token is not None and " " in token:
            raise UnsupportedModel(
                f"decoder: got {_name(step)} with the token {token!r}; allowed: tokens without spaces, "
                'or prepend_scheme "never"'
            )
    return Plan(
        kind="BYTE_FALLBACK",  # without byte tokens: a plain join that can strip
        text_of=lambda token: _plain(token.replace(mark, " ")),
        strip_left="STRIP_FIRST_TOKEN" if strips else "STRIP_NOTHING",
    )


def _word_piece(step: dict[str, Any]) -> Plan:
    """Each token is decoded alone: a space before each but the first, unless the prefix ("##") says that it
    continues a word, then cleanup ("who ?" -> "who?")."""
    decode = tokenizers.decoders.WordPiece(prefix=step["prefix"], cleanup=step["cleanup"]).decode
    return Plan(
        kind="WORD_PIECE",
        text_of=lambda token: _plain(decode(["a", token]).removeprefix("a")),
        first_text_of=lambda token: str(decode([token])).encode(),
    )


def _llama_sequence(steps: list[dict[str, Any]]) -> Plan | None:
    """[Replace...] [ByteFallback] [Fuse [Strip]] in this order, as Llama 2 and Gemma have it; else None."""
    kinds = _LLAMA.fullmatch("".join(f"{step['type']} " for step in steps))
    # A pattern that is a regular expression has no String.
    replaces = [
        (step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"
    ]
    if kinds is None or len(replaces) > MAX_REPLACES or not all(pattern for pattern, _ in replaces):
        return None
    if kinds["strip"] and steps[-1] != {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
        return None

    def text_of(token: str) -> tuple[bytes, bool]:
        for pattern, content in replaces:
            token = replaced(token, pattern, content)
        if kinds["bytes"] and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match.group(1), 16)]), True
        return _plain(token)

    strip_left = "STRIP_ONE_SPACE" if kinds["strip"] else "STRIP_NOTHING"
    return Plan(kind="BYTE_FALLBACK", text_of=text_of, strip_left=strip_left)
