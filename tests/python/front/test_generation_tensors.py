"""What the tokenizer stage hands to generation: the models' tensors fit, pairs of tensors, times."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import TokenizerStage
from stage_requests import ask
from tritonclient.grpc.model_config_pb2 import ModelConfig

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture(scope="module")
def stage(byte_level_model: Path) -> TokenizerStage:
    return TokenizerStage(Tokenizer(byte_level_model), 64)


def test_generation_takes_what_the_stage_sends() -> None:
    """The inputs of generation and generation_unary are the outputs of the tokenizer, with the same types."""

    def tensors(model: str, kind: str) -> dict[str, tuple[int, list[int]]]:
        config = text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), ModelConfig())
        return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in getattr(config, kind)}

    sent = tensors("tokenizer", "output")
    one, many = tensors("generation", "input"), tensors("generation_unary", "input")
    assert one["prompt_text"][1] == [1]
    assert one | {"prompt_text": sent["prompt_text"]} == {k: v for k, v in sent.items() if k != "row_lengths"}
    assert many == {k: v for k, v in sent.items() if k != "acknowledge"}


def test_lists_that_generation_knows_as_pairs(stage: TokenizerStage, byte_level_model: Path) -> None:
    """bad_words leave as ids, with a space in front and without; logit_bias as ids and values, by id."""
    tokenizer = Tokenizer(byte_level_model)
    outputs = ask(stage, {"text_input": "a", "bad_words": ["one", " one", "x y"]}).outputs
    raw = tokenizer.raw
    texts = ["one", " one", "x y", " x y"]
    expected = [raw.encode(text, add_special_tokens=False).ids for text in texts]
    assert outputs["bad_word_lengths"].tolist() == [len(ids) for ids in expected]
    assert outputs["bad_word_ids"].tolist() == [token for ids in expected for token in ids]
    given = {"logit_bias": {"9": -1, "4": 2.5}}
    outputs = ask(stage, {"text_input": "a", "sampling_parameters": json.dumps(given)}).outputs
    assert (outputs["logit_bias_ids"].tolist(), outputs["logit_bias"].tolist()) == ([4, 9], [2.5, -1.0])
    error = ask(stage, {"text_input": "a", "bad_words": [f"word {i}" for i in range(65)]}).error
    assert error.startswith("bad_words: got 130 sequences of tokens; allowed: at most 128")


def test_the_vocabulary_goes_with_the_ids(byte_level_model: Path) -> None:
    """The fingerprint of the file tokenizer.json, and the model's name without the folders before it."""
    stage = TokenizerStage(Tokenizer(byte_level_model), 64, model="/srv/models/small")
    (sent,) = ask(stage, {"text_input": "a"}).outputs["vocabulary"]
    expected = hashlib.sha256((byte_level_model / "tokenizer.json").read_bytes()).hexdigest()[:32]
    assert sent.decode() == f"{expected} small"


def test_times_go_with_the_request(stage: TokenizerStage) -> None:
    """When the request came, and how long this stage took, by the clock of the other stages."""
    before = time.monotonic_ns()
    outputs = ask(stage, {"text_input": "a"}).outputs
    took = time.monotonic_ns() - before
    assert before <= outputs["arrival_ns"].item() <= before + took
    assert 0 < outputs["tokenize_ns"].item() <= took
