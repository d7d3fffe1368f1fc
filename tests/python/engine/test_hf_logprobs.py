"""Logprobs equal Hugging Face transformers' in float32 within ERROR, however the work is cut into steps;
streams have them beside exactly their ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quire import LLM, SamplingParams
from quire.outputs import RequestOutput, StreamOutput
from quire.token_logprobs import Logprob, TokenLogprobs
from random_llama import FAMILIES, VOCAB_SIZE, with_batches_in_flight
from reference import load

# Of two float32 programs that add in different orders; logits here are of order 10.
ERROR = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "gqa-32": {},
    "mqa-40-tied": {"head_dim": 40, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gqa-128-biases": {"head_dim": 128, "attention_bias": True, "mlp_bias": True},
    **FAMILIES,
}
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 8},
    "no prefix caching": {"enable_prefix_caching": False},
    "preemption": {
        "max_model_len": 320,
        "num_gpu_blocks_override": 24,
        "watermark": 0.0,
        "max_num_batched_tokens": 48,
    },
    "two batches in flight": {"max_num_batched_tokens": 48},
}


def make_llm(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "whole", **settings: Any) -> LLM:
    llm = LLM(str(folder), **{"dtype": "float32", "max_model_len": 384} | MODES[name] | settings)
    if name == "two batches in flight":
        llm._core = with_batches_in_flight(llm, 2)
        monkeypatch.setattr(llm._engine.runner, "max_batches_in_flight", 2)
    return llm


def make_requests(seed: int, count: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts that share beginnings, one of them longer than PROMPT_PIECE, and mixed params."""
    generator = random.Random(seed)
    beginning = [generator.randrange(VOCAB_SIZE) for _ in range(40)]
    prompts, params = [], []
    for index in range(count):
        length = 280 if index == 0 else generator.choice([1, 2, 15, 17, 60])
        tail = [generator.randrange(VOCAB_SIZE) for _ in range(length)]
        prompts.append(beginning[: generator.choice([0, 20, 40])] + tail if index else tail)
        params.append(
            SamplingParams(
                temperature=generator.choice([0, 0.7, 1.0]),
                top_k=generator.choice([0, 5]),
                seed=index,
                max_tokens=20,
                min_tokens=generator.choice([0, 20]),
                logprobs=generator.choice([None, 0, 1, 5, 20]),
                prompt_logprobs=3 if index == 0 else generator.choice([None, 0, 2, 20]),
            )
        )
    return prompts, params


def check_place(
    place: Mapping[int, Logprob], token: int, num_top: int, reference: np.ndarray, what: str
) -> None:
    """reference: [vocab_size] float64. The token first, then the likeliest in order."""
    assert next(iter(place)) == token, what
    assert len(place) in (num_top, num_top + 1), what
    assert (num_top in (0, len(place) - 1)) or token in [*place][:num_top], what
    best = -np.sort(-reference)
    for other, (logprob, rank, _) in place.items():
        own = reference[other]
        assert abs(logprob - own) < ERROR, f"{what}: token {other} has {logprob}, transformers says {own}"
        # A tie may have another order there.
        num_above = int((reference > own + ERROR).sum()), int((reference > own - ERROR).sum())
        assert num_above[0] < rank <= max(num_above[1], num_above[0] + 1), what
    for rank, (other, entry) in enumerate(
        sorted(((t, e) for t, e in place.items() if e.rank <= num_top), key=lambda item: item[1].rank)
    ):
        assert entry.rank == rank + 1, what
        assert abs(reference[other] - best[rank]) < ERROR, what


def check(folder: Path, output: RequestOutput, params: SamplingParams, what: str) -> None:
    completion = output.outputs[0]
    tokens = [*output.prompt_token_ids, *completion.token_ids]
    with torch.inference_mode():
        logits = load(folder)(torch.tensor([tokens])).logits[0]
    reference = torch.log_softmax(logits.double(), dim=-1).numpy()
    first = len(output.prompt_token_ids)
    if params.logprobs is None:
        assert completion.logprobs is None
        assert completion.cumulative_logprob is None
    else:
        assert completion.logprobs is not None
        assert len(completion.logprobs) == len(completion.token_ids)
        for index, place in enumerate(completion.logprobs):
            at = first + index
            check_place(place, tokens[at], params.logprobs, reference[at - 1], f"{what}, output {index}")
        own = [place[token].logprob for place, token in zip(completion.logprobs, tokens[first:], strict=True)]
        assert completion.cumulative_logprob == pytest.approx(sum(own), abs=1e-6)
    if params.prompt_logprobs is None:
        assert output.prompt_logprobs is None
    else:
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert len(output.prompt_logprobs) == first
        for at, place in enumerate(output.prompt_logprobs):
            if place is not None:
                check_place(
                    place, tokens[at], params.prompt_logprobs, reference[at - 1], f"{what}, prompt {at}"
                )


@pytest.mark.parametrize(
    ("model", "mode"),
    [("gqa-32", mode) for mode in MODES] + [(model, "chunked") for model in MODELS if model != "gqa-32"],
)
def test_logprobs_agree_with_transformers(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model: str, mode: str
) -> None:
    """Of sampled tokens, the likeliest ones and prompts, alone and in any company, twice with the cache."""
    folder = llama_folder(**MODELS[model])
    llm = make_llm(folder, monkeypatch, mode)
    for seed in range(2):
        prompts, params = make_requests(seed, 10)
        outputs = llm.generate(prompts, params)
        for index, output in enumerate(outputs):
            check(folder, output, params[index], f"{model}, {mode}, seed {seed}, request {index}")
            if params[index].prompt_logprobs is not None and len(prompts[index]) > 1:
                assert output.num_cached_tokens == 0
        again = llm.generate(prompts, params)
        assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in outputs]
        if mode in ("whole", "chunked"):
            assert any(output.num_cached_tokens > 0 for output in again)
    assert (llm.stats().num_preemptions > 0) == (mode == "preemption")


def test_tokens_do_not_depend_on_logprobs(llama_folder: Callable[..., Path]) -> None:
    """Who asks for logprobs, or sits beside one who does, gets the tokens that he would get otherwise."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=384)
    prompts, params = make_requests(7, 8)
    plain = [SamplingParams(**{**p.given, "logprobs": None, "prompt_logprobs": None}) for p in params]
    ids = [[o.outputs[0].token_ids for o in llm.generate(prompts, each)] for each in (plain, params)]
    assert ids[0] == ids[1]


def test_decoded_tokens_are_the_text(llama_folder: Callable[..., Path]) -> None:
    """Of one-character tokens; special ones are named; a part of a character is U+FFFD."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=128)
    table = llm._core.token_table
    [output] = llm.generate([65, 66], SamplingParams(temperature=0, max_tokens=30, logprobs=20))
    assert output.outputs[0].logprobs is not None
    for place in output.outputs[0].logprobs:
        for token, entry in place.items():
            assert entry.decoded_token == table.text(token).decode(errors="replace")


Joined = tuple[list[int], str, list[TokenLogprobs], Any, Any, Any]


def stream(llm: LLM, prompts: Sequence[list[int]], params: Sequence[SamplingParams]) -> list[Joined]:
    """What the pieces of each request are joined."""
    request_ids = [llm.add_request(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    parts: dict[int, list[StreamOutput]] = {request_id: [] for request_id in request_ids}
    while llm.has_unfinished_requests:
        for output in llm.step():
            parts[output.request_id].append(output)
    joined: list[Joined] = []
    for request_id, each in zip(request_ids, params, strict=True):
        pieces = parts[request_id]
        total = 0.0
        for piece in pieces:
            if each.logprobs is None:
                continue
            assert piece.logprobs is not None
            assert len(piece.logprobs) == len(piece.token_ids), "a piece has the logprobs of its ids"
            total += sum(p[t].logprob for p, t in zip(piece.logprobs, piece.token_ids, strict=True))
            assert piece.cumulative_logprob == pytest.approx(total, abs=1e-6), "of the request so far"
        assert all(piece.prompt_logprobs is None for piece in pieces[1:])
        joined.append(
            (
                [token for piece in pieces for token in piece.token_ids],
                "".join(piece.text for piece in pieces),
                [place for piece in pieces for place in piece.logprobs or []],
                pieces[-1].cumulative_logprob,
                pieces[0].prompt_logprobs,
                (pieces[-1].finish_reason, pieces[-1].stop_reason),
            )
        )
    return joined


@pytest.mark.parametrize("mode", ["chunked", "preemption", "two batches in flight"])
def test_pieces_joined_are_the_whole(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Ids, text and logprobs of a stream, with stop strings that lie across tokens and characters that take
    several: what the same request is answered at once."""
    folder = llama_folder()
    generator = random.Random(3)
    prompts, params = make_requests(11, 12)
    llm = make_llm(folder, monkeypatch, mode)
    texts = [output.outputs[0].text for output in llm.generate(prompts, params)]
    stopping = []
    for text, each in zip(texts, params, strict=True):
        begin = generator.randrange(len(text) - 6)
        cut = text[begin : begin + generator.randrange(2, 6)]
        stops = [cut, text[begin] + "never"] if generator.random() < 0.8 else []
        include = generator.random() < 0.5
        stopping.append(
            SamplingParams(**{**each.given, "stop": stops, "include_stop_str_in_output": include})
        )
    whole = llm.generate(prompts, stopping)
    for one, piece, each in zip(whole, stream(llm, prompts, stopping), stopping, strict=True):
        ids, text, logprobs, cumulative, prompt_logprobs, end = piece
        completion = one.outputs[0]
        assert (tuple(ids), text, end) == (
            completion.token_ids,
            completion.text,
            (completion.finish_reason, completion.stop_reason),
        )
        if end[1] is not None:
            assert end[1] in each.stop
            assert each.include_stop_str_in_output == text.endswith(end[1])
        assert [*map(list, logprobs)] == [*map(list, completion.logprobs or [])]
        for mine, other in zip(logprobs, completion.logprobs or [], strict=True):
            assert all(abs(mine[token].logprob - other[token].logprob) < ERROR for token in mine)
        assert (cumulative is None) == (each.logprobs is None)
        assert (prompt_logprobs is None) == (each.prompt_logprobs is None)
        if prompt_logprobs is not None:
            assert one.prompt_logprobs is not None
            assert len(prompt_logprobs) == len(one.prompt_logprobs) == len(one.prompt_token_ids)
    assert any(one.outputs[0].stop_reason is not None for one in whole)


def test_ids_alone(llama_folder: Callable[..., Path]) -> None:
    """detokenize false: the same ids, no text, each id as soon as it is there."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=128)
    settings = {"temperature": 1.0, "seed": 5, "max_tokens": 20, "ignore_eos": True}
    [whole] = llm.generate([1, 2, 3], SamplingParams(**settings))
    [bare] = llm.generate([1, 2, 3], SamplingParams(**settings, detokenize=False))
    assert bare.outputs[0].token_ids == whole.outputs[0].token_ids
    assert (bare.outputs[0].text, whole.outputs[0].text != "") == ("", True)
    llm.add_request([1, 2, 3], SamplingParams(**settings, detokenize=False))
    sizes = []
    while llm.has_unfinished_requests:
        sizes += [len(output.token_ids) for output in llm.step()]
    assert sizes == [1] * 20
