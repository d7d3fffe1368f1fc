"""quire.LLM after exceptions: whatever is raised wherever, the next call gives what a fresh engine gives."""

from __future__ import annotations

import dataclasses
import dis
import linecache
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import quire
from examples import examples
from quire import LLM, EngineError, InvalidArgument, SamplingParams
from random_llama import with_batches_in_flight

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
PROMPTS = ["import os", [1, 2, 3], "x"]
OWN_CODE = str(Path(quire.__file__).parent)
MAX_PLACES = examples(250)  # of a call, spread evenly


@pytest.fixture(scope="module")
def llm(llama_folder: Callable[..., Path]) -> LLM:
    return LLM(str(llama_folder()), dtype="float32", max_model_len=64, max_num_seqs=4, num_threads=1)


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


class Places:
    """Counts the places of our own Python code where an exception may strike: each line, and before and after
    each call. Raises `error` at the place number `at`."""

    def __init__(self, error: BaseException | None = None, at: int = -1) -> None:
        self.count = 0
        self._error = error
        self._at = at

    @contextmanager
    def watched(self) -> Iterator[None]:
        sys.setprofile(self._visit)
        sys.settrace(self._visit)
        try:
            yield
        finally:
            sys.settrace(None)
            sys.setprofile(None)

    def _visit(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        # Python drops what is raised while any() closes its generator.
        if not code.co_filename.startswith(OWN_CODE) or code.co_name == "<genexpr>":
            return None
        # What strikes once a public function has ended is the caller's: its answer is lost on the way.
        if event == "return" and not (frame.f_back and frame.f_back.f_code.co_filename.startswith(OWN_CODE)):
            return self._visit
        if _is_nowhere(frame, event, argument):
            return self._visit
        if self.count == self._at and self._error:
            sys.settrace(None)
            sys.setprofile(None)
            self.count += 1
            raise self._error
        self.count += 1
        return self._visit


def _is_nowhere(frame: FrameType, event: str, argument: object) -> bool:
    """Whether Python does nothing here that could raise: at a `try:`, and between the end of a with block and
    its __exit__. An exception there would leave a lock held."""
    if event == "c_call":
        return getattr(argument, "__name__", "") == "__exit__"
    if event != "line":
        return False
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return line == "try:" or (line.startswith("with ") and operation in _AFTER_A_WITH_BLOCK)


# What the line of a with statement does once its block has ended; before the block it loads variables.
_AFTER_A_WITH_BLOCK = ("LOAD_CONST", "NOP", "POP_BLOCK", "SWAP")


def places_of(call: Callable[[], object]) -> range:
    """Places of a call, at most MAX_PLACES."""
    places = Places()
    with places.watched():
        call()
    return range(0, places.count, max(1, places.count // MAX_PLACES))


def check_next_generate(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """It is right, and nothing is left in the engine; other threads can have their turn."""
    assert not llm._turn._is_owned()  # type: ignore[attr-defined]
    outputs = llm.generate(PROMPTS, GREEDY)
    assert expected == [output.outputs[0].token_ids for output in outputs]
    stats = llm.stats()
    assert (0, 0, stats.num_blocks) == (stats.num_running, stats.num_waiting, stats.num_free_blocks)
    assert not llm._core.has_unfinished_requests()
    llm._core.check_integrity()


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_generate_leaves_nothing(
    llm: LLM,
    expected: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    max_batches_in_flight: int,
    error: BaseException,
) -> None:
    """An exception at any place of generate() reaches the caller, and the next call is as on a fresh LLM."""
    monkeypatch.setattr(llm, "_core", with_batches_in_flight(llm, max_batches_in_flight))
    monkeypatch.setattr(llm._engine.runner, "max_batches_in_flight", max_batches_in_flight)

    def call() -> object:
        return llm.generate(PROMPTS, GREEDY)

    for at in places_of(call):
        with pytest.raises(type(error)), Places(error, at).watched():
            call()
        check_next_generate(llm, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_streams_leave_nothing(llm: LLM, expected: list[tuple[int, ...]], error: BaseException) -> None:
    """An exception at any place of add_request(), step() or cancel() reaches the caller; a stream that is
    still open afterwards goes on right, and the next generate() is as on a fresh LLM."""
    got: dict[int, list[int]] = {}
    prompt_of: dict[int, int] = {}

    def take_steps() -> None:
        while llm.has_unfinished_requests:
            for output in llm.step():
                got.setdefault(output.request_id, []).extend(output.token_ids)

    def call() -> None:
        for index, prompt in enumerate(PROMPTS):
            prompt_of[llm.add_request(prompt, GREEDY)] = index
            llm.cancel(12345678)
        take_steps()

    for at in places_of(call):
        got.clear()
        prompt_of.clear()
        with pytest.raises(type(error)), Places(error, at).watched():
            call()
        was_open = set(llm._open) if llm.has_unfinished_requests else set()
        take_steps()
        for request_id in was_open & prompt_of.keys():
            assert expected[prompt_of[request_id]] == tuple(got[request_id])
        check_next_generate(llm, expected)


class Interrupted:
    """`inner`, of which some methods raise before they do anything."""

    def __init__(self, inner: object, methods: tuple[str, ...]) -> None:
        self._inner, self._methods = inner, methods

    def __getattr__(self, name: str) -> Any:
        if name in self._methods:
            raise KeyboardInterrupt
        return getattr(self._inner, name)


@pytest.mark.parametrize("part", ["core", "runner"])
def test_an_interrupted_cleanup_is_made_up_for(
    llm: LLM, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A second Control-C, while the engine is emptied after the first one, changes nothing for the calls that
    come after it."""
    with monkeypatch.context() as patch:
        if part == "core":
            patch.setattr(llm, "_core", Interrupted(llm._core, ("update", "clear")))
        else:
            runner = Interrupted(llm._engine.runner, ("collect", "discard"))
            patch.setattr(llm, "_engine", dataclasses.replace(llm._engine, runner=runner))
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, GREEDY)
        with pytest.raises(KeyboardInterrupt):
            llm.add_request("x", GREEDY)
    check_next_generate(llm, expected)


def interrupt(*_: object) -> object:
    raise KeyboardInterrupt


def test_a_bad_id_leaves_nothing(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """Ids that no engine can have are refused by the prompt's name before anything is added."""
    for bad in (2**31, -1, 2**63, 10**5000, 300):
        with pytest.raises(InvalidArgument, match=r"^prompts\[1\]: prompt_ids: got"):
            llm.generate(["def f(x):", [bad]], GREEDY)
        with pytest.raises(InvalidArgument, match=r"^prompt: prompt_ids: got"):
            llm.add_request([1, bad], GREEDY)
        assert not llm._core.has_unfinished_requests()
    check_next_generate(llm, expected)


def test_a_failed_step_ends_the_streams(
    llm: LLM, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What step() raises ends every open request, since their tokens are lost."""
    llm.add_request("x", GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(llm._engine.runner, "collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.step()
    assert not llm.has_unfinished_requests
    with pytest.raises(EngineError, match="no request is open"):
        llm.step()
    check_next_generate(llm, expected)


def test_a_refused_request_leaves_the_streams_alone(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """add_request() that raises changes nothing for requests that are open."""
    request_id = llm.add_request(PROMPTS[1], GREEDY)
    ids: list[int] = []
    while llm.has_unfinished_requests:
        with pytest.raises(InvalidArgument, match=r"^prompt: stop_token_ids: got 300"):
            llm.add_request("y", SamplingParams(stop_token_ids=[300]))
        for output in llm.step():
            assert request_id == output.request_id
            ids += output.token_ids
    assert expected[1] == tuple(ids)


def test_threads_take_turns(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """generate() from several threads at once gives each its own answers."""
    answers: list[list[tuple[int, ...]]] = []

    def work() -> None:
        for _ in range(5):
            outputs = llm.generate(PROMPTS, GREEDY)
            answers.append([output.outputs[0].token_ids for output in outputs])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [expected] * 20 == answers


def test_an_error_belongs_to_its_own_output(llm: LLM, expected: list[tuple[int, ...]]) -> None:
    """A sequence that cannot go on ends with "error" and the reason; the others of the batch are complete."""
    no_second_b = {"allowed_token_ids": [65], "bad_words": ["bb"], "temperature": 0.0, "max_tokens": 4}
    outputs = llm.generate(PROMPTS, [GREEDY, SamplingParams(**no_second_b), GREEDY])
    [failed] = outputs[1].outputs
    assert ("error", (65,), "b") == (failed.finish_reason, failed.token_ids, failed.text)
    assert "no token can be sampled" in failed.error
    assert [expected[0], expected[2]] == [outputs[index].outputs[0].token_ids for index in (0, 2)]
    assert "" == outputs[0].outputs[0].error
    check_next_generate(llm, expected)


@pytest.mark.parametrize(
    ("params", "harmless"),
    [
        ({"min_tokens": 2, "allowed_token_ids": [257]}, {"min_tokens": 0}),
        ({"min_tokens": 1, "allowed_token_ids": [257, 7], "stop_token_ids": [7]}, {"stop_token_ids": [8]}),
        ({"allowed_token_ids": [65], "bad_words": ["b"]}, {"bad_words": ["bb"]}),
    ],
)
def test_a_request_that_forbids_every_token(
    llm: LLM, params: dict[str, Any], harmless: dict[str, Any]
) -> None:
    """What leaves no first token is known before anything runs; what leaves one runs."""
    message = r"^prompts\[1\]: allowed_token_ids: got only tokens that are forbidden"
    with pytest.raises(InvalidArgument, match=message):
        llm.generate(PROMPTS, [GREEDY, SamplingParams(**params), GREEDY])
    [output] = llm.generate(["x"], SamplingParams(**{**params, **harmless, "max_tokens": 1}))
    assert 1 == len(output.outputs[0].token_ids)
