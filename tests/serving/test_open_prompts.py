"""A prompt of ids may end inside a character: through generation and detokenizer the output completes it."""

from __future__ import annotations

import pytest
from client import generate
from quire.triton.server import TritonServer
from tokenizers import Tokenizer


@pytest.mark.parametrize("character", ["é", "—", "😀"])
def test_a_character_of_prompt_and_output(server: TritonServer, tokenizer: Tokenizer, character: str) -> None:
    """The text is decode(prompt + output) minus the prompt's complete characters, whatever the output is."""
    before = "# " + "caf\u00e9 \u2014 \U0001f600 " * 4
    ids = tokenizer.encode(before + character).ids
    begin = len(tokenizer.encode(before).ids)
    completed = 0
    for cut in range(begin + 1, len(ids)):
        prompt = ids[:cut]
        assert tokenizer.decode(prompt).endswith("\ufffd")
        for seed in range(10):
            body = {"input_ids": prompt, "max_tokens": 6, "temperature": 1, "seed": seed, "top_k": 4}
            answer = generate(server.http_url, body, "generation")
            text = generate(server.http_url, {"chunk": answer["chunk"]}, "detokenizer")["text_output"]
            output = answer["output_ids"]
            whole = tokenizer.decode(prompt + (output if isinstance(output, list) else [output]))
            broken = tokenizer.decode(prompt)
            is_completed = not whole.startswith(broken)
            assert text == whole[len(broken) - is_completed :]
            completed += is_completed
    assert completed > 3
