"""quire.LLM: inputs in all shapes, outputs in order, errors before anything runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import quire
import tokenizers
from quire import LLM, InvalidArgument, SamplingParams
from random_llama import with_batches_in_flight

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(llama_folder: Callable[..., Path]) -> Path:
    return llama_folder()


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), dtype="float32", max_model_len=256, max_num_seqs=4, num_threads=1)


def test_text_prompt(llm: LLM, folder: Path) -> None:
    """A text is tokenized, and the output's text is the tokenizer's decoding of its ids."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    [output] = llm.generate("Grüße, 世界", GREEDY)
    assert output.prompt == "Grüße, 世界"
    assert list(output.prompt_token_ids) == tokenizer.encode("Grüße, 世界").ids
    [completion] = output.outputs
    assert completion.text == tokenizer.decode(completion.token_ids)
    assert (completion.index, completion.finish_reason, len(completion.token_ids)) == (0, "length", 8)


def test_token_ids_prompt(llm: LLM) -> None:
    """A list of ids is one prompt; it has no text."""
    [output] = llm.generate([1, 2, 3], GREEDY)
    assert output.prompt is None
    assert output.prompt_token_ids == (1, 2, 3)


def test_mixed_prompts_keep_their_order(llm: LLM) -> None:
    """Texts and ids in one call, more than run at once, of different lengths: answers stand where prompts
    do."""
    prompts = ["a", [1, 2, 3], "b" * 40, [7] * 90, "c", "d", [9]]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (30, 1, 3, 2, 20, 5, 4)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == ["a", None, "b" * 40, None, "c", "d", None]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [30, 1, 3, 2, 20, 5, 4]
    alone = [llm.generate([prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]
    assert [output.outputs for output in alone] == [output.outputs for output in outputs]


def test_no_prompts(llm: LLM) -> None:
    """Nothing in, nothing out."""
    assert llm.generate([]) == []


def test_stop_string(llm: LLM) -> None:
    """The text ends before the stop string, or with it when asked."""
    free = llm.generate("x", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))[0].outputs[0].text
    stop = free[20:23]
    cut = free.index(stop)
    params = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, "stop": [stop]}
    [output] = llm.generate("x", SamplingParams(**params))
    assert output.outputs[0].text == free[:cut]
    assert output.outputs[0].finish_reason == "stop"
    [output] = llm.generate("x", SamplingParams(**params, include_stop_str_in_output=True))
    assert output.outputs[0].text == free[: cut + len(stop)]


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    """Shown when asked for, on stderr."""
    llm.generate([[1], [2]], GREEDY)
    assert capsys.readouterr() == ("", "")
    llm.generate([[1], [2]], GREEDY, use_tqdm=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "generating" in err


BAD_CALLS = {
    "empty prompt": (
        ["ok", ""],
        GREEDY,
        r"prompts\[1\]: prompt_ids: got no tokens; allowed: at least 1 token",
    ),
    "too long": ([[1] * 300], GREEDY, r"prompts\[0\]: prompt_ids: got 300 tokens; allowed: 1 to 255"),
    "unknown id": ([[1], [2], [999]], GREEDY, r"prompts\[2\]: prompt_ids: got 999; allowed: 0 to 299"),
    "wrong type": ([[1], 2.5], GREEDY, r"prompts\[1\]: got 2\.5; allowed: a string or a list of token ids"),
    "wrong id type": ([[1, "2"]], GREEDY, r"prompts\[0\]: got \[1, \"2\"\]; allowed: a string or a list"),
    "number of params": (["a", "b"], [GREEDY], r"sampling_params: got 1 of them; allowed: one for all, or 2"),
    "stop token": (
        ["a", "b"],
        [GREEDY, SamplingParams(stop_token_ids=[300])],
        r"prompts\[1\]: stop_token_ids: got 300",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_come_before_anything_runs(llm: LLM, name: str) -> None:
    """The error names the prompt and the field; no step ran, nothing is left behind, the next call works."""
    prompts, params, message = BAD_CALLS[name]
    before = llm.stats()
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(prompts, params)  # type: ignore[arg-type]
    after = llm.stats()
    assert after.step == before.step
    assert (after.num_waiting, after.num_running) == (0, 0)
    assert len(llm.generate([1], GREEDY)) == 1


@pytest.mark.parametrize("call", ["launch", "collect"])
@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_an_interrupted_call_leaves_nothing(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, max_batches_in_flight: int, call: str
) -> None:
    """Control-C in the middle: the requests are gone, their blocks free, and the next call works."""
    expected = llm.generate([5, 6], GREEDY)[0].outputs
    monkeypatch.setattr(llm, "_core", with_batches_in_flight(llm, max_batches_in_flight))
    runner = llm._engine.runner
    monkeypatch.setattr(runner, "max_batches_in_flight", max_batches_in_flight)
    work = getattr(runner, call)
    calls = []

    def interrupt(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(*args)

    monkeypatch.setattr(runner, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[i] for i in range(9)], GREEDY)
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)
    assert not llm._core.has_unfinished_requests()
    assert llm.generate([5, 6], GREEDY)[0].outputs == expected
    assert llm._core.num_batches_in_flight() == 0


def stream_to_the_end(llm: LLM) -> dict[int, list[quire.StreamOutput]]:
    """What step() gives to each request until none is open."""
    outputs: dict[int, list[quire.StreamOutput]] = {}
    while llm.has_unfinished_requests:
        for output in llm.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def test_streamed_requests_get_what_generate_gives(llm: LLM) -> None:
    """add_request() and step(): joined, each request's text, ids and end are those of generate(), also of a
    request that joins later; only its last output has a finish reason."""
    prompts = ["Grüße", [1, 2, 3], [7] * 90]
    expected = [output.outputs[0] for output in llm.generate(prompts, GREEDY)]
    ids = [llm.add_request(prompt, GREEDY) for prompt in prompts[:2]]
    early = llm.step()
    ids.append(llm.add_request(prompts[2], GREEDY))
    outputs = stream_to_the_end(llm)
    for output in reversed(early):
        outputs.setdefault(output.request_id, []).insert(0, output)
    assert sorted(ids) == sorted(outputs)
    for request_id, completion in zip(ids, expected, strict=True):
        parts = outputs[request_id]
        assert completion.text == "".join(part.text for part in parts)
        assert completion.token_ids == tuple(token for part in parts for token in part.token_ids)
        assert [""] * (len(parts) - 1) + ["length"] == [part.finish_reason for part in parts]


def test_a_cancelled_request_ends(llm: LLM) -> None:
    """cancel() ends one stream with its reason and leaves the others alone; ended and unknown ids mean
    nothing to it."""
    alone = llm.generate([1, 2, 3], GREEDY)[0].outputs[0].token_ids
    kept, gone = llm.add_request([1, 2, 3], GREEDY), llm.add_request([4], GREEDY)
    llm.cancel(gone)
    llm.cancel(123456789)
    outputs = stream_to_the_end(llm)
    llm.cancel(kept)
    assert "cancelled" == outputs[gone][-1].finish_reason
    assert alone == tuple(token for part in outputs[kept] for token in part.token_ids)
    stats = llm.stats()
    assert (0, 0, stats.num_blocks) == (stats.num_running, stats.num_waiting, stats.num_free_blocks)


def test_the_two_ways_do_not_mix(llm: LLM) -> None:
    """generate() would lose what open streams get, and a step without a request has nothing to do."""
    with pytest.raises(quire.EngineError, match=r"no request is open; call add_request"):
        llm.step()
    with pytest.raises(InvalidArgument, match=r"^prompt: .*"):
        llm.add_request([], GREEDY)
    with pytest.raises(InvalidArgument, match=r"a string or a list of token ids"):
        llm.add_request([1.5], GREEDY)  # type: ignore[list-item]
    llm.add_request([1], GREEDY)
    with pytest.raises(quire.EngineError, match=r"requests of add_request\(\) are open"):
        llm.generate([1], GREEDY)
    stream_to_the_end(llm)


def test_unknown_setting() -> None:
    """Settings are those of model.json; a wrong one is named with its neighbour."""
    with pytest.raises(quire.ConfigError, match=r"max_num_seq: unknown key.*max_num_seqs"):
        LLM("anything", max_num_seq=3)


def test_dummy_weights(folder: Path) -> None:
    """load_format "dummy" needs no weights and repeats by seed."""
    settings = {"load_format": "dummy", "max_model_len": 64, "num_threads": 1}
    first, second = (LLM(str(folder), **settings).generate([1, 2], GREEDY) for _ in range(2))
    assert first == second


def test_every_public_name_exists() -> None:
    """__all__ is what can be imported, and dir() shows it."""
    for name in quire.__all__:
        assert getattr(quire, name).__name__ == name
    assert set(quire.__all__) <= set(dir(quire))
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        quire.Engine  # noqa: B018


def test_import_is_cheap() -> None:
    """Neither `import quire` nor its settings and sampling parameters load torch."""
    code = (
        "import sys, quire; quire.SamplingParams(); quire.EngineConfig; quire.InvalidArgument;"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_defaults_of_the_checkpoint(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """generation_config.json says what a request leaves out; a request that gives the same has the last
    word."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder(), folder)
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5, "top_k": 1}')
    llm = LLM(str(folder), dtype="float32", max_model_len=64, num_threads=1, max_output_tokens=9)
    assert llm.get_default_sampling_params() == SamplingParams(temperature=0.5, top_k=1)
    greedy = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    [expected] = llm.generate([5, 6], greedy)
    # top_k 1 is greedy whatever the temperature; without max_tokens the limit of the server holds
    [output] = llm.generate([5, 6], SamplingParams(ignore_eos=True, seed=3))
    assert output.outputs == expected.outputs
    assert len(output.outputs[0].token_ids) == 9
    # what the table's default says is said, too
    hot = SamplingParams(temperature=2, top_k=0, ignore_eos=True, seed=3)
    assert llm.generate([5, 6], hot)[0].outputs != expected.outputs
    with pytest.raises(InvalidArgument) as caught:
        llm.generate([5, 6], SamplingParams(max_tokens=10))
    assert str(caught.value) == (
        "prompts[0]: max_tokens: got 10; allowed: at most 9 (max_output_tokens of the server)"
    )


def test_a_tokenizer_of_its_own(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The setting tokenizer names another folder, and the model's need not have one."""
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    shutil.copytree(llama_folder(), model)
    tokenizer.mkdir()
    (model / "tokenizer.json").rename(tokenizer / "tokenizer.json")
    settings = {"dtype": "float32", "max_model_len": 64, "num_threads": 1}
    params = SamplingParams(temperature=0, max_tokens=5)
    [expected] = LLM(str(llama_folder()), **settings).generate("def", params)
    [output] = LLM(str(model), tokenizer=str(tokenizer), **settings).generate("def", params)
    assert output.outputs[0].text == expected.outputs[0].text


def test_the_default_length(llama_folder: Callable[..., Path]) -> None:
    """default_max_tokens is for requests that do not say how long; others may have more."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=64, num_threads=1, default_max_tokens=7)
    assert llm.get_default_sampling_params().max_tokens == 7
    for given, expected in (({}, 7), ({"max_tokens": None}, 7), ({"max_tokens": 9}, 9), ({"n": 2}, 7)):
        [output] = llm.generate([5, 6], SamplingParams(ignore_eos=True, **given))
        assert {len(sequence.token_ids) for sequence in output.outputs} == {expected}
    [output] = llm.generate([5] * 60, SamplingParams(ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 4  # what fits into the context
    with pytest.raises(InvalidArgument, match=r"min_tokens: got 8; allowed: .*7"):
        llm.generate([5, 6], SamplingParams(min_tokens=8))


def test_a_default_that_is_not_supported_is_a_warning(
    llama_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, with file, name and value."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder(), folder)
    (folder / "generation_config.json").write_text('{"no_repeat_ngram_size": 3}')
    LLM(str(folder), dtype="float32", max_model_len=64, num_threads=1)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    [warning] = [warning for warning in warnings if "tokenizer.json" not in warning]
    assert "generation_config.json: no_repeat_ngram_size: got 3" in warning


def test_prompts_are_truncated_on_request(llm: LLM) -> None:
    """Texts and ids keep their end; the prompt given back is the one that was given."""
    params = SamplingParams(temperature=0, max_tokens=2, truncate_prompt_tokens=3)
    text, ids = llm.generate(["abcdef", [1, 2, 3, 4, 5]], params)
    assert (text.prompt, text.prompt_token_ids) == ("abcdef", llm.generate("def", GREEDY)[0].prompt_token_ids)
    assert ids.prompt_token_ids == (3, 4, 5)
    longest = SamplingParams(max_tokens=1, truncate_prompt_tokens=-1)
    assert len(llm.generate([[7] * 400], longest)[0].prompt_token_ids) == 255
