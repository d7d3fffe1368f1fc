"""What quire.LLM takes as prompts and as sampling parameters, and how it refuses everything else."""

from __future__ import annotations

import array
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from quire import LLM, InvalidArgument, SamplingParams
from quire.errors import UnsupportedModel
from quire.tokenizer import EncodingError, Tokenizer
from random_llama import BOS
from tokenizers import models, pre_tokenizers, processors

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(llama_folder: Callable[..., Path]) -> LLM:
    return LLM(str(llama_folder()), dtype="float32", max_model_len=64, max_num_seqs=4, num_threads=1)


ITSELF: list[Any] = []
ITSELF.append(ITSELF)


class Unprintable:
    """Raises when it is shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


BAD_PROMPTS = {
    "bytes": (b"abc", r"^prompts: got b'abc' \(bytes\); allowed: a string or a list of token ids, or a list"),
    "a bytearray": (bytearray(b"abc"), r"^prompts: got bytearray\(b'abc'\) \(bytearray\)"),
    "a memoryview": (memoryview(b"abc"), r"^prompts: got <memory at 0x\w+> \(memoryview\)"),
    "bytes in a list": (["a", b"abc"], r"^prompts\[1\]: got b'abc' \(bytes\)"),
    "None": (None, r"^prompts: got null"),
    "None in a list": (["a", None], r"^prompts\[1\]: got null"),
    "a number": (5, r"^prompts: got 5"),
    "a generator": ((text for text in "ab"), r"^prompts: got an iterator \(generator\)"),
    "a map": (map(str, [1]), r"^prompts: got an iterator \(map\)"),
    "a dict": ({"prompt": "a"}, r'^prompts: got \{"prompt": "a"\}'),
    "a dict in a list": ([{"prompt_token_ids": [1]}], r'^prompts\[0\]: got \{"prompt_token_ids": \[1\]\}'),
    "a set": ({1, 2}, r"^prompts: got \{1, 2\} \(set\)"),
    "booleans": ([True, False], r"^prompts\[0\]: got true"),
    "booleans as ids": ([[1, True]], r"^prompts\[0\]: got \[1, true\]"),
    "floats": ([[1.0]], r"^prompts\[0\]: got \[1\.0\]"),
    "an array of floats": (np.asarray([1.0, 2.0]), r"^prompts\[0\]: got 1\.0"),
    "an array of no dimension": (np.asarray(5), r"^prompts: got array\(5\) \(ndarray\)"),
    "texts in a prompt": ([["a"]], r'^prompts\[0\]: got \["a"\]'),
    "ids and a text": ([1, "a"], r'^prompts\[0\]: got \[1, "a"\]'),
    "lists too deep": ([[[1]]], r"^prompts\[0\]: got \[\[1\]\]"),
    "a list of itself": (ITSELF, r"^prompts\[0\]: got \[\[\[\[\[\.\.\.\]\]\]\]\]"),
    "a huge list": ([[None] * 10**6], r"^prompts\[0\]: got \[null, .*\.\.\. \(1000000 items\)"),
    "a lone surrogate": (
        ["ok", "a\ud83d"],
        r'^prompts\[1\]: got "a\\ud83d" \(not valid Unicode: a lone surr',
    ),
    "a lone surrogate alone": ("\ud83d", r"^prompts\[0\]: got "),
    "an unprintable object": ([Unprintable()], r"^prompts\[0\]: got a Unprintable; allowed: "),
    "an empty text": ([[1], ""], r"^prompts\[1\]: prompt_ids: got no tokens"),
    "no ids": ([[]], r"^prompts\[0\]: prompt_ids: got no tokens"),
    "a huge id": ([[1], [2**64]], r"^prompts\[1\]: prompt_ids: got 18446744073709551616; allowed: 0 to 299"),
    "an array of huge ids": (
        np.asarray([2**63], np.uint64),
        r"^prompts\[0\]: prompt_ids: got 9223372036854775808",
    ),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_bad_prompt_is_refused_by_name(llm: LLM, name: str) -> None:
    """With its place, what it was and what is allowed, whatever it was."""
    prompts, message = BAD_PROMPTS[name]
    with pytest.raises(InvalidArgument, match=message) as caught:
        llm.generate(prompts, GREEDY)
    assert len(str(caught.value)) < 300
    assert not llm._core.has_unfinished_requests()


@pytest.mark.parametrize("prompt", [b"abc", None, {"prompt": "a"}, iter([1]), [True], [[1]], "a\ud83d", 5])
def test_add_request_refuses_the_same(llm: LLM, prompt: Any) -> None:
    """Under the name of its own argument."""
    with pytest.raises(InvalidArgument, match=r"^prompt: got .*; allowed: a string or a list of token ids$"):
        llm.add_request(prompt, GREEDY)
    assert not llm.has_unfinished_requests


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 0}, r"^sampling_params: got \{.*\(SamplingParams\.from_dict reads a dict\)$"),
        ([GREEDY, {"temperature": 0}], r"^sampling_params\[1\]: got \{"),
        ([GREEDY, None], r"^sampling_params\[1\]: got null"),
        ((params for params in [GREEDY]), r"^sampling_params: got an iterator \(generator\)"),
        (0.5, r"^sampling_params: got 0\.5; allowed: SamplingParams, or a list"),
        ([GREEDY], r"^sampling_params: got 1 of them; allowed: one for all, or 2"),
        ([], r"^sampling_params: got 0 of them; allowed: one for all, or 2"),
    ],
)
def test_bad_sampling_params_are_refused_by_name(llm: LLM, params: Any, message: str) -> None:
    """A dict, for one, is no SamplingParams."""
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(["a", "b"], params)


def test_arrays_count_as_lists(llm: LLM) -> None:
    """Arrays of numpy and of the standard library count as a prompt's ids, as several prompts, as ids."""
    expected = [output.outputs for output in llm.generate([[1, 2, 3], [4, 5, 6]], GREEDY)]
    rows = np.asarray([[1, 2, 3], [4, 5, 6]])
    many: Any
    for many in (rows, rows.astype(np.uint8), list(rows), [array.array("i", [1, 2, 3]), [4, 5, 6]]):
        assert expected == [output.outputs for output in llm.generate(many, GREEDY)]
    one: Any
    for one in (rows[0], [np.int64(1), np.int32(2), 3], (1, 2, 3)):
        [output] = llm.generate(one, GREEDY)
        assert (expected[0], (1, 2, 3)) == (output.outputs, output.prompt_token_ids)
        assert {int} == {type(token_id) for token_id in output.prompt_token_ids}
    texts: Any = np.asarray(["a", "b"])
    assert ["a", "b"] == [output.prompt for output in llm.generate(texts, GREEDY)]


def test_special_tokens_are_added_on_request(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Once, by default, whether the text spells them or not; not at all with add_special_tokens false."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama_folder().iterdir():
        (folder / path.name).symlink_to(path)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    (folder / "tokenizer.json").unlink()
    raw.save(str(folder / "tokenizer.json"))
    llm = LLM(str(folder), dtype="float32", max_model_len=64, num_threads=1)
    bare = SamplingParams(temperature=0, max_tokens=1, add_special_tokens=False)
    params = [GREEDY, GREEDY, bare, bare]
    prompts = ["ab", "<bos>ab", "ab", "<bos>ab"]
    counts = [output.prompt_token_ids.count(BOS) for output in llm.generate(prompts, params)]
    assert [1, 1, 0, 1] == counts
    assert (BOS, *llm.generate("ab", bare)[0].prompt_token_ids) == llm.generate("ab")[0].prompt_token_ids


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_ids_without_a_token_are_said_at_the_start(
    llama_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A vocabulary that is padded past the tokenizer's: how many ids have no text."""
    LLM(str(llama_folder()), dtype="float32", max_model_len=64, num_threads=1)
    [warning] = warnings_of(caplog)
    assert "tokenizer.json: has no token for 41 of the model's 300 ids: where the model" in warning


@pytest.mark.parametrize(
    ("ids", "problem"),
    [(list(range(17)), "got 17 ids; allowed: at most 16"), ([5, 300], "got 300; allowed: 0 to")],
)
def test_end_tokens_that_cannot_be(
    llama_folder: Callable[..., Path], tmp_path: Path, ids: list[int], problem: str
) -> None:
    """An error names the files that they come from."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama_folder().iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(UnsupportedModel) as caught:
        LLM(str(folder), dtype="float32", max_model_len=64, num_threads=1)
    assert f"{folder}: eos_token_id of generation_config.json, else of config.json: {problem}" in str(
        caught.value
    )


class Panic(BaseException):
    """What `tokenizers` raises for a bug in itself, which is no Exception."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(
    "error", [Exception("no such piece"), Panic("src/x.rs:12"), TypeError("must be str")]
)
def test_errors_of_tokenizers_name_the_prompt(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Whatever it raises is the fault of one prompt; Control-C is not."""
    real = llm._engine.tokenizer.raw

    class Failing:
        """Fails at texts that hold a "!"."""

        def __init__(self, error: BaseException) -> None:
            self._error = error

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def encode_batch_fast(self, texts: list[str], **keywords: Any) -> Any:
            if any("!" in text for text in texts):
                raise self._error
            return real.encode_batch_fast(texts, **keywords)

    monkeypatch.setattr(llm._engine.tokenizer, "raw", Failing(error))
    message = r'^prompts\[2\]: got "c!"; allowed: text that the tokenizer'
    with pytest.raises(InvalidArgument, match=message) as caught:
        llm.generate(["a", [1], "c!", "d"], GREEDY)
    assert "src/x.rs" not in str(caught.value)
    with pytest.raises(InvalidArgument, match=r'^prompts\[0\]: bad_words: got "b!"; allowed: text that the'):
        llm.generate("a", SamplingParams(bad_words=["b!"]))
    monkeypatch.setattr(llm._engine.tokenizer, "raw", Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "c!"], GREEDY)


def test_a_real_failure_of_tokenizers(tmp_path: Path) -> None:
    """A vocabulary that lacks its own unknown token."""
    raw = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(EncodingError, match="WordLevel error: Missing"):
        Tokenizer(tmp_path).encode("a b")


def test_text_that_the_model_has_no_token_for(
    llama_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer with more ids than the model: said at the start, and to who sends one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama_folder().iterdir():
        (folder / path.name).symlink_to(path)
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens([f"<extra {index}>" for index in range(42)])  # ids 259 to 300
    (folder / "tokenizer.json").unlink()
    raw.save(str(folder / "tokenizer.json"))
    llm = LLM(str(folder), dtype="float32", max_model_len=64, num_threads=1)
    [warning] = warnings_of(caplog)
    assert 'added token "<extra 41>" has id 300, but the model only ids below 300' in warning
    with pytest.raises(
        InvalidArgument, match=r'^prompts\[1\]: got the token "<extra 41>", whose id is 300; all'
    ):
        llm.generate(["a", "b<extra 41>"], GREEDY)
    llm.generate(["a", "b<extra 40>"], GREEDY)
