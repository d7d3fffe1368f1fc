"""`LLM`: the engine in the caller's own process, without Triton."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from quire import _core
from quire.config import EngineConfig
from quire.engine.core_errors import invalid_argument
from quire.errors import EngineError, InvalidArgument, describe
from quire.outputs import CompletionOutput, Receipt, RequestOutput, StreamOutput, make_receipt
from quire.runner.threads import OWN_CORES
from quire.sampling_params import SamplingParams
from quire.token_logprobs import OutputLogprobs, PromptLogprobs

__all__ = ["LLM"]

Prompt: TypeAlias = "str | Sequence[int]"


class LLM:
    """A model, loaded; `settings` are those of ``model.json`` (`quire.config.EngineConfig`).

    >>> llm = LLM("quire-8m", max_model_len=512)
    >>> [output] = llm.generate("def fibonacci(n):", SamplingParams(max_tokens=32, temperature=0))
    >>> output.outputs[0].text
    """

    def __init__(self, model: str, **settings: Any) -> None:
        OWN_CORES.apply()
        # Not at the top: this is what imports torch.
        from quire.engine.build import build
        from quire.engine.loop import discard_batches, step

        self._step = step
        self._discard_batches = discard_batches

        self.config = EngineConfig(model=model, **settings)
        self._engine = build(self.config, OWN_CORES)
        self._core = self._engine.core
        self._next_id = 0
        self._open: dict[int, _Open] = {}  # requests of add_request()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        return_receipt: bool = False,
    ) -> list[RequestOutput]:
        """Continue every prompt; the outputs are in the prompts' order.

        prompts: a text, a list of texts, a list of token ids, or a list of lists of token ids.
        sampling_params: one for all, or one per prompt; default: SamplingParams(). Fields that they leave out
            are those of get_default_sampling_params().
        use_tqdm: show a progress bar (the name is vLLM's).
        return_receipt: say where the time went (CompletionOutput.receipt).
        Raises InvalidArgument that names the prompt before anything runs.
        """
        if self._open:
            raise EngineError(
                "generate: requests of add_request() are open; call step() until they have ended"
            )
        requests = self._parse(prompts, sampling_params, return_receipt)
        first_id = self._next_id
        self._next_id += len(requests)
        for index, request in enumerate(requests):
            try:
                self._add(first_id + index, request)
            except _core.InvalidArgument as error:
                for earlier in range(index):
                    self._core.cancel(first_id + earlier)
                self._core.take_outputs()
                raise invalid_argument(error, f"prompts[{index}]: ") from None
        finished: dict[int, RequestOutput] = {}
        with _progress_bar(use_tqdm, len(requests)) as advance:
            try:
                while len(finished) < len(requests):
                    for output in self._collect(
                        self._step(self._core, self._engine.runner), requests, first_id
                    ):
                        finished[output.request_id] = output
                        advance()
            finally:
                # The next call must find an empty engine. Interrupted or not, a batch may be out: one that
                # was launched before it was known that its requests had ended.
                for request_id in range(first_id, first_id + len(requests)):
                    if request_id not in finished:
                        self._core.cancel(request_id)
                self._core.take_outputs()
                self._discard_batches(self._core, self._engine.runner)
        return [finished[first_id + index] for index in range(len(requests))]

    def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        return_receipt: bool = False,
    ) -> int:
        """Queue one prompt; its id. step() returns what becomes of it. Requests may be added between any two
        steps.

        prompt: a text or a list of token ids.
        Raises InvalidArgument that names the prompt.

        >>> request_id = llm.add_request("import os", SamplingParams(max_tokens=32, temperature=0))
        >>> while llm.has_unfinished_requests:
        ...     for output in llm.step():
        ...         print(output.text, end="", flush=True)
        """
        prompts = prompt if isinstance(prompt, str) else [prompt]
        [request] = self._parse(prompts, sampling_params, return_receipt)
        request_id = self._next_id
        try:
            self._add(request_id, request)
        except _core.InvalidArgument as error:
            raise invalid_argument(error, "prompt: ") from None
        self._next_id += 1
        self._open[request_id] = _Open(request.params.n, request.params.skip_special_tokens)
        return request_id

    def _add(self, request_id: int, request: _Request) -> None:
        params, arrival_ns = request.params, request.arrival_ns
        self._core.add_request(
            request_id,
            request.prompt_ids,
            params.to_core(request.bad_word_ids),
            priority=params.priority,
            arrival_ns=arrival_ns,
            tokenize_ns=request.tokenize_ns,
            deadline_ns=arrival_ns + params.deadline_ms * 1_000_000 if params.deadline_ms else 0,
            return_receipt=request.return_receipt,
        )

    def step(self) -> list[StreamOutput]:
        """Run one step of the engine; what it gave to requests of add_request(). Needs one of them open."""
        if not self._open:
            raise EngineError("step: no request is open; call add_request() first")
        table = self._core.token_table
        outputs = []
        for release in self._step(self._core, self._engine.runner).releases:
            request_id, ids, end = release.request_id, release.token_ids, release.finish_reason
            request = self._open[request_id]
            if end:
                request.num_unfinished -= 1
                if not request.num_unfinished:
                    del self._open[request_id]
            text_ids = ids[: release.num_text_ids]
            text = table.decode(
                text_ids, release.is_first, release.trim, request.skip_special_tokens, release.open_text
            )
            logprobs, prompt_logprobs = release.logprobs, release.prompt_logprobs
            outputs.append(
                StreamOutput(
                    request_id,
                    text,
                    ids,
                    end,
                    release.error,
                    release.index,
                    release.stop_reason,
                    None if logprobs is None else OutputLogprobs(logprobs, table),
                    release.cumulative_logprob,
                    None if prompt_logprobs is None else PromptLogprobs(prompt_logprobs, table),
                    make_receipt(release.receipt),
                )
            )
        return outputs

    def cancel(self, request_id: int) -> None:
        """End a request of add_request(): one of the next steps returns its end. Unknown or ended: nothing
        happens."""
        if request_id in self._open:
            self._core.cancel(request_id)

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether requests of add_request() are open."""
        return bool(self._open)

    def _parse(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        return_receipt: bool,
    ) -> list[_Request]:
        """One _Request per prompt; texts are tokenized together."""
        arrival_ns = time.monotonic_ns()
        if isinstance(prompts, str) or (len(prompts) > 0 and type(prompts[0]) is int):
            prompts = cast("Sequence[Prompt]", [prompts])
        prompts = cast("Sequence[Prompt]", prompts)
        if params is None:
            params = SamplingParams()
        if isinstance(params, SamplingParams):
            params = [params.with_defaults(self._engine.defaults)] * len(prompts)
        else:
            params = [item.with_defaults(self._engine.defaults) for item in params]
        if len(params) != len(prompts):
            allowed = f"one for all, or {len(prompts)}, one per prompt"
            raise InvalidArgument("sampling_params", f"{len(params)} of them", allowed)
        for index, prompt in enumerate(prompts):
            is_ids = isinstance(prompt, Sequence) and all(type(token_id) is int for token_id in prompt)
            if not isinstance(prompt, str) and not is_ids:
                raise InvalidArgument(
                    f"prompts[{index}]", describe(prompt), "a string or a list of token ids"
                )
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._engine.tokenizer.encode_batch(texts))
        requests = []
        for index, prompt in enumerate(prompts):
            ids = next(encoded) if isinstance(prompt, str) else list(prompt)
            limit = params[index].truncate_prompt_tokens
            if limit is not None:
                limit = limit if limit > 0 else self._core.config.max_model_len - 1
                try:
                    ids = self._engine.tokenizer.truncate(prompt, ids, limit)
                except InvalidArgument as error:
                    field = f"prompts[{index}]: {error.field}"
                    raise InvalidArgument(field, error.given, error.allowed) from None
            text = prompt if isinstance(prompt, str) else None
            bad_word_ids = self._engine.tokenizer.bad_word_ids(params[index].bad_words)
            requests.append(_Request(text, ids, params[index], bad_word_ids, arrival_ns, return_receipt))
        tokenize_ns = time.monotonic_ns() - arrival_ns
        for request in requests:
            request.tokenize_ns = tokenize_ns
        return requests

    def _collect(
        self, outputs: _core.StepOutputs, requests: list[_Request], first_id: int
    ) -> Iterator[RequestOutput]:
        """Add a step's releases to their requests; the outputs of those that end."""
        table = self._core.token_table
        for release in outputs.releases:
            index = release.request_id - first_id
            request = requests[index]
            sequence = request.sequences[release.index]
            sequence.token_ids += release.token_ids
            text_ids = release.token_ids[: release.num_text_ids]
            skip = request.params.skip_special_tokens
            sequence.texts.append(
                table.decode(text_ids, release.is_first, release.trim, skip, release.open_text)
            )
            if (logprobs := release.logprobs) is not None:
                sequence.logprobs.append(logprobs)
                sequence.cumulative_logprob = release.cumulative_logprob
            if (prompt_logprobs := release.prompt_logprobs) is not None:
                request.prompt_logprobs = PromptLogprobs(prompt_logprobs, table)
            if release.finish_reason == "error":
                raise EngineError(f"prompts[{index}]: {release.error}")
            sequence.finish_reason = release.finish_reason
            sequence.stop_reason = release.stop_reason
            sequence.receipt = make_receipt(release.receipt)
            if all(sequence.finish_reason for sequence in request.sequences):
                yield RequestOutput(
                    request_id=release.request_id,
                    prompt=request.prompt,
                    prompt_token_ids=tuple(request.prompt_ids),
                    num_cached_tokens=release.num_cached_tokens,
                    outputs=tuple(
                        sequence.completion(index, table) for index, sequence in enumerate(request.sequences)
                    ),
                    prompt_logprobs=request.prompt_logprobs,
                )

    def get_default_sampling_params(self) -> SamplingParams:
        """What requests get that do not say otherwise: those of the checkpoint, see the settings
        generation_config and override_generation_config (the name is vLLM's)."""
        return SamplingParams(**self._engine.defaults)

    def stats(self) -> _core.EngineStats:
        """Counters since the start, and what is in use now."""
        return self._core.stats()


@dataclass
class _Request:
    """A prompt, and what has come of it so far."""

    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams
    bad_word_ids: Sequence[Sequence[int]] = ()
    arrival_ns: int = 0
    return_receipt: bool = False
    tokenize_ns: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    sequences: list[_Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self.sequences = [_Sequence() for _ in range(self.params.n)]


@dataclass
class _Sequence:
    """One of the n continuations of a prompt so far."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[npt.NDArray[np.void]] = field(default_factory=list)  # of each release; none: not asked
    cumulative_logprob: float | None = None
    finish_reason: str = ""
    stop_reason: str | int | None = None
    receipt: Receipt | None = None

    def completion(self, index: int, table: _core.TokenTable) -> CompletionOutput:
        return CompletionOutput(
            index=index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=OutputLogprobs.joined(self.logprobs, table) if self.logprobs else None,
            cumulative_logprob=self.cumulative_logprob,
            receipt=self.receipt,
        )


@dataclass
class _Open:
    """A request of add_request() that has not ended."""

    num_unfinished: int  # of its sequences
    skip_special_tokens: bool


@contextmanager
def _progress_bar(is_shown: bool, total: int) -> Iterator[Callable[[], None]]:
    """Gives a function that counts one request as done."""
    if not is_shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("generating", total=total)
        yield lambda: progress.advance(task)
