"""Checkpoint folders in a vocabulary of words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import word_model
from quire import LLM, SamplingParams
from quire.models.config import load_model_config
from quire.tokenizer import Tokenizer, build_table


@pytest.mark.parametrize(("shape", "billions"), [("8b", 8.03), ("1b", 1.24), ("30b-a3b", 30.53)])
def test_sizes(shape: str, billions: float, tmp_path: Path) -> None:
    """The shapes are the models of that name: their parameters add up to it."""
    model = load_model_config(word_model.make(shape, tmp_path))
    assert billions == pytest.approx(model.parameters(torch.bfloat16).num_bytes / 2 / 1e9, abs=0.01)
    assert 16384 == model.max_position_embeddings


def test_a_word_is_a_token(tmp_path: Path) -> None:
    """text_of() is the text of exactly these ids, and they are decoded to it again."""
    tokenizer = Tokenizer(word_model.make("quire-8m", tmp_path))
    ids = [3, 4095, 10, 10, 77]
    assert ids == tokenizer.encode(word_model.text_of(ids))
    assert "w3 w4095 w10 w10 w77" == build_table(tokenizer.raw).decode(ids)


def test_the_embedded_model_in_words(tmp_path: Path) -> None:
    """quire-8m keeps its weights, also when made twice: the ids are those of the embedded model."""
    for _ in range(2):
        folder = word_model.make("quire-8m", tmp_path)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected, made = (
        LLM(model, max_model_len=64, num_threads=1).generate([10, 20, 30], params)[0].outputs[0].token_ids
        for model in ("quire-8m", str(folder))
    )
    assert expected == made
