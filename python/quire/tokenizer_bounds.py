"""What a tokenizer.json may cost: checked before it is spent, since a file comes from anywhere.

Every bound is far beyond what known tokenizers need.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from quire.errors import UnsupportedModel, describe

MAX_UNUSED_IDS = 1 << 20  # ids without a token, below the largest id
MAX_TOKEN_TEXT = 1 << 16  # characters of one token's text
MAX_TABLE_BYTES = 256 << 20  # all tokens' texts together
MAX_REPLACES = 64  # rules of a decoder
MAX_GROWTH = 1024  # times that a normalizer may lengthen a text


def check_ids(ids: Collection[int]) -> None:
    """The table has a row for each id up to the largest."""
    largest, allowed = max(ids, default=-1), len(ids) + MAX_UNUSED_IDS
    if largest >= allowed:
        raise UnsupportedModel(
            f"token id: got {largest} in a vocabulary of {len(ids)}; allowed: below {allowed}"
        )


def check_size(size: int) -> int:
    """`size`: bytes of the table so far."""
    if size > MAX_TABLE_BYTES:
        raise UnsupportedModel(
            f"vocabulary: got over {size} bytes of text; allowed: at most {MAX_TABLE_BYTES}"
        )
    return size


def replaced(token: str, pattern: str, content: str) -> str:
    """token.replace(), refused before it makes a text that is too long."""
    length = len(token) + token.count(pattern) * (len(content) - len(pattern))
    if length > MAX_TOKEN_TEXT:
        raise UnsupportedModel(
            f"decoder: got a Replace that makes {length} characters of the token {describe(token)}; allowed: "
            f"at most {MAX_TOKEN_TEXT}"
        )
    return token.replace(pattern, content)


def check_growth(normalizer: dict[str, Any]) -> None:
    """Refuses Replace rules that multiply a text: with four of them that make 100 letters of one, a prompt of
    ten letters is a billion."""
    growth = 1.0
    for rule in steps_of(normalizer):
        if rule["type"] == "Replace":
            # A regular expression may match nothing: the content then stands beside each letter.
            length, added = len(rule["pattern"].get("String", "")), len(rule["content"])
            growth *= max(1.0, added / length) if length else 1.0 + added
    if growth > MAX_GROWTH:
        raise UnsupportedModel(
            f"normalizer: got Replace rules that may make a text {growth:g} times as long; allowed: "
            f"{MAX_GROWTH} times"
        )


def steps_of(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, a pre-tokenizer or a decoder, which may be Sequences of Sequences."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for step in part.get(key, ()):
            yield from steps_of(step)
