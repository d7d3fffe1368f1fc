"""`LLM`: the engine in the caller's own process, without Triton."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from quire import _core
from quire.config import EngineConfig
from quire.errors import EngineError, InvalidArgument
from quire.outputs import CompletionOutput, RequestOutput, StreamOutput, make_timing
from quire.prompts import (
    Prompt,
    chat_params,
    encode_prompts,
    read_conversations,
    read_prompt,
    read_prompts,
    read_sampling_params,
)
from quire.runner.threads import OWN_CORES
from quire.sampling_params import SamplingParams
from quire.token_logprobs import OutputLogprobs, PromptLogprobs

__all__ = ["LLM"]


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
        from quire.engine.loop import step

        self._step = step
        self.config = EngineConfig(model=model, **settings)
        self._engine = build(self.config, OWN_CORES)
        self._core = self._engine.core
        self._chat_templates = self._engine.tokenizer.chat_templates(
            trusts_requests=self.config.trust_request_chat_template
        )
        self._ids = count()  # each request gets one that no other ever had
        self._open: dict[int, _Request] = {}  # of add_request()
        self._turn = threading.RLock()  # the core belongs to one thread at a time
        # False while a call changes the engine, and after one that an exception cut off even there where it
        # cleaned up: then the next call does.
        self._is_intact = True

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        return_receipt: bool = False,
    ) -> list[RequestOutput]:
        """Continue every prompt; the outputs are in the prompts' order.

        prompts: a text, a list of texts, a list of token ids, or a list of lists of token ids. Integer arrays
            of numpy count as lists.
        sampling_params: one for all, or one per prompt; default: SamplingParams(). Fields that they leave out
            are those of get_default_sampling_params().
        use_tqdm: show a progress bar (the name is vLLM's).
        return_receipt: say where the time went (CompletionOutput.receipt).
        Raises InvalidArgument that names the prompt before anything runs. What goes wrong with one sequence
        while it runs is its CompletionOutput.error. Whatever is raised, Control-C too, nothing of this call
        stays in the engine. Calls from several threads take turns.
        """
        with self._turn:
            if self.has_unfinished_requests:
                raise EngineError(
                    "generate: requests of add_request() are open; call step() until they have ended"
                )
            requests = self._parse(read_prompts(prompts), sampling_params, return_receipt)
            try:
                return self._run(requests, use_tqdm)
            finally:
                self._clear()  # a batch may be in flight that was launched before its requests had ended

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        return_receipt: bool = False,
        **options: Any,
    ) -> list[RequestOutput]:
        """Answer every conversation: generate(), with prompts that the model's chat template makes.

        messages: a list of messages, objects with role and content, or a list of such lists.
        options: the other fields of ChatOptions, such as tools, for every conversation.
        Raises InvalidArgument as generate() does, and where the template refuses the messages.

        >>> [output] = llm.chat([{"role": "user", "content": "What is the capital of France?"}])
        """
        prompts = read_conversations(messages, self._chat_templates, options)
        return self.generate(
            prompts, chat_params(sampling_params), use_tqdm=use_tqdm, return_receipt=return_receipt
        )

    def _run(self, requests: list[_Request], use_tqdm: bool) -> list[RequestOutput]:
        """Run all requests to their ends. Leaves the engine as it is when something is raised."""
        self._begin_change()
        live = {next(self._ids): request for request in requests}
        for index, (request_id, request) in enumerate(live.items()):
            self._add(request_id, request, f"prompts[{index}]: ")
        finished: dict[int, RequestOutput] = {}
        with Progress(console=Console(stderr=True), disable=not use_tqdm) as progress:
            task = progress.add_task("generating", total=len(requests))
            while len(finished) < len(requests):
                if not self._core.has_unfinished_requests():
                    raise EngineError("generate: another call has emptied the engine")
                for output in self._collect(self._step(self._core, self._engine.runner), live):
                    finished[output.request_id] = output
                    progress.advance(task)
        return [finished[request_id] for request_id in live]

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
        Raises InvalidArgument that names the prompt; the other requests go on.

        >>> request_id = llm.add_request("import os", SamplingParams(max_tokens=32, temperature=0))
        >>> while llm.has_unfinished_requests:
        ...     for output in llm.step():
        ...         print(output.text, end="", flush=True)
        """
        with self._turn:
            [request] = self._parse(
                [read_prompt(prompt, "prompt")], sampling_params, return_receipt, "prompt"
            )
            if not self._open:
                self._begin_change()
            request_id = next(self._ids)
            try:
                self._add(request_id, request, "prompt: ")
                self._open[request_id] = request
            except BaseException:
                self._open.pop(request_id, None)
                self._core.cancel(request_id)  # step() ignores the end of a request that is not open
                raise
            self._is_intact = True
            return request_id

    def _add(self, request_id: int, request: _Request, where: str) -> None:
        params, arrival_ns = request.params, request.arrival_ns
        try:
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
        except _core.InvalidArgument as error:
            raise InvalidArgument.from_core(error, where) from None

    def step(self) -> list[StreamOutput]:
        """Run one step of the engine; what it gave to requests of add_request(). Needs one of them open.

        Whatever is raised, Control-C too, ends them all: their tokens of this step are lost.
        """
        if not self.has_unfinished_requests:
            raise EngineError("step: no request is open; call add_request() first")
        try:
            with self._turn:
                self._is_intact = False
                outputs = self._stream_outputs(self._step(self._core, self._engine.runner))
                self._is_intact = True
            return outputs
        except BaseException:
            with self._turn:
                self._clear()
            raise

    def _stream_outputs(self, outputs: _core.StepOutputs) -> list[StreamOutput]:
        """A step's releases as what step() returns."""
        table = self._core.token_table
        streamed = []
        for release in outputs.releases:
            request_id, ids, end = release.request_id, release.token_ids, release.finish_reason
            request = self._open.get(request_id)
            if request is None:  # its add_request() was interrupted
                self._core.cancel(request_id)
                continue
            if end:
                request.num_unfinished -= 1
                if not request.num_unfinished:
                    del self._open[request_id]
            text_ids, skip = ids[: release.num_text_ids], request.params.skip_special_tokens
            text = table.decode(text_ids, release.is_first, release.trim, skip, release.open_text)
            logprobs, prompt_logprobs = release.logprobs, release.prompt_logprobs
            streamed.append(
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
                    make_timing(release.receipt),
                    release.usage if end else None,
                )
            )
        return streamed

    def cancel(self, request_id: int) -> None:
        """End a request of add_request(): one of the next steps returns its end. Unknown or ended: nothing
        happens."""
        with self._turn:
            if request_id in self._open:
                self._core.cancel(request_id)

    @property
    def has_unfinished_requests(self) -> bool:
        """Whether requests of add_request() are open."""
        return self._is_intact and bool(self._open)

    def _begin_change(self) -> None:
        """Before requests of a new call enter the engine, which must be empty. It is not where an exception
        struck while another call was cleaning up."""
        if not self._is_intact or self._core.has_unfinished_requests():
            self._clear()
        self._is_intact = False

    def _clear(self) -> None:
        """Forget every request, whatever state an exception left the engine in."""
        self._is_intact = False
        self._open.clear()
        self._core.clear()
        self._engine.runner.discard()
        self._is_intact = True

    def _parse(
        self,
        prompts: list[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        return_receipt: bool,
        name: str = "",
    ) -> list[_Request]:
        """One _Request per prompt; texts are tokenized together. `name`: of the only prompt, for errors."""
        arrival_ns = time.monotonic_ns()
        tokenizer, config = self._engine.tokenizer, self._core.config
        names = [name or f"prompts[{index}]" for index in range(len(prompts))]
        all_params = read_sampling_params(params, len(prompts), self._engine.defaults)
        rows = encode_prompts(tokenizer, prompts, all_params, names, config.vocab_size)
        bad_word_ids: dict[Sequence[str], Sequence[Sequence[int]]] = {}
        requests = []
        for prompt, ids, item, where in zip(prompts, rows, all_params, names, strict=True):
            limit = item.truncate_prompt_tokens
            try:
                if limit is not None:
                    ids = tokenizer.truncate(
                        prompt,
                        ids,
                        limit if limit > 0 else config.max_model_len - 1,
                        add_special_tokens=item.add_special_tokens,
                    )
                if item.bad_words not in bad_word_ids:
                    bad_word_ids[item.bad_words] = tokenizer.bad_word_ids(item.bad_words)
            except InvalidArgument as error:
                raise InvalidArgument(f"{where}: {error.field}", error.given, error.allowed) from None
            text = prompt if isinstance(prompt, str) else None
            words = bad_word_ids[item.bad_words]
            requests.append(_Request(text, ids, item, words, arrival_ns, return_receipt))
        tokenize_ns = time.monotonic_ns() - arrival_ns
        for request in requests:
            request.tokenize_ns = tokenize_ns
        return requests

    def _collect(self, outputs: _core.StepOutputs, live: Mapping[int, _Request]) -> Iterator[RequestOutput]:
        """Add a step's releases to their requests; the outputs of those that end."""
        table = self._core.token_table
        for release in outputs.releases:
            request = live.get(release.request_id)
            if request is None:
                raise EngineError(
                    f"generate: the engine runs a request of another call ({release.request_id})"
                )
            sequence = request.sequences[release.index]
            ids = release.token_ids
            sequence.token_ids += ids
            text_ids, skip = ids[: release.num_text_ids], request.params.skip_special_tokens
            text = table.decode(text_ids, release.is_first, release.trim, skip, release.open_text)
            sequence.texts.append(text)
            if (logprobs := release.logprobs) is not None:
                sequence.logprobs.append(logprobs)
                sequence.cumulative_logprob = release.cumulative_logprob
            if (prompt_logprobs := release.prompt_logprobs) is not None:
                request.prompt_logprobs = PromptLogprobs(prompt_logprobs, table)
            if release.finish_reason:
                request.outputs[release.index] = sequence.completion(release, table)
            if len(request.outputs) == request.params.n:
                yield RequestOutput(
                    request_id=release.request_id,
                    prompt=request.prompt,
                    prompt_token_ids=tuple(request.prompt_ids),
                    num_cached_tokens=release.usage["num_cached_tokens"],
                    outputs=tuple(request.outputs[index] for index in range(request.params.n)),
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
    num_unfinished: int = field(init=False)  # of its sequences, where step() returns them
    outputs: dict[int, CompletionOutput] = field(default_factory=dict)  # of those that have ended

    def __post_init__(self) -> None:
        self.num_unfinished = self.params.n
        self.sequences = [_Sequence() for _ in range(self.params.n)]


@dataclass
class _Sequence:
    """One of the n continuations of a prompt so far."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[npt.NDArray[np.void]] = field(default_factory=list)  # of each release; none: not asked
    cumulative_logprob: float | None = None

    def completion(self, end: _core.Release, table: _core.TokenTable) -> CompletionOutput:
        return CompletionOutput(
            index=end.index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=end.finish_reason,
            stop_reason=end.stop_reason,
            error=end.error,
            logprobs=OutputLogprobs.joined(self.logprobs, table) if self.logprobs else None,
            cumulative_logprob=self.cumulative_logprob,
            receipt=make_timing(end.receipt),
            usage=end.usage,
        )
