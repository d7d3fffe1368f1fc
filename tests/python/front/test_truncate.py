"""A prompt cut to its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from quire.errors import InvalidArgument
from quire.tokenizer import Tokenizer


def test_truncate_keeps_the_special_tokens_that_encode_adds(
    tokenizers_by_name: dict[str, tokenizers.Tokenizer], tmp_path: Path
) -> None:
    """As transformers does on the left side: special tokens, then the end of the text; ids are cut as they
    are."""
    raw = tokenizers.Tokenizer.from_str(tokenizers_by_name["byte_level"].to_str())
    raw.add_special_tokens(["<bos>"])
    bos = raw.token_to_id("<bos>")
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
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
