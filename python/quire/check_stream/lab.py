"""The material that checks judge: prompts, and what the server made of them in one piece and as a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

from quire.check_stream.protocol import (
    Adapter,
    CheckStreamError,
    Chunk,
    Recording,
    Reply,
    Request,
    RequestError,
    Unsupported,
)

# A model that only repeats what it has read, even a tiny one, goes on in the same script.
PROMPTS = (
    "def fibonacci(n):",
    "class Stack:\n    def __init__(self):",
    "The following words are separated by spaces: one two three one two three one two three",
    "greeting = 'é ü ñ é ü ñ é ü ñ é ü ñ",
    "words = ['日本語', '日本語', '日本語', '日本語', '日本語', '",
    "emoji = '😀 😀 😀 😀 😀 😀 😀 😀",
    "family = '👩‍👩‍👧 👩‍👩‍👧 👩‍👩‍👧 👩‍👩‍👧",
    "marks = 'e\u0302\u0301 e\u0302\u0301 e\u0302\u0301 e\u0302\u0301 e\u0302\u0301",
    "greeting = 'नमस्ते नमस्ते नमस्ते नमस्ते",
    "greeting = 'привет привет привет привет",
)
# High temperature with a seed makes byte tokens that no prompt draws out. Only a server whose seeds reproduce
# can be judged by them.
_SEEDS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request, asked in one piece, as a stream, and in one piece again."""

    request: Request
    whole: Reply = field(default_factory=Reply)
    stream: Recording = field(default_factory=Recording)
    problem: str = ""  # why whole and stream cannot be compared
    refusal: RequestError | None = None  # of the answer in one piece: nothing else was asked then


@dataclass(kw_only=True)
class Lab:
    """Asks the server, once for all checks."""

    adapter: Adapter = field(kw_only=False)
    prompts: Sequence[str] = field(default=PROMPTS, kw_only=False)
    concurrency: int = 16
    body_megabytes: int = 16

    @cached_property
    def samples(self) -> list[Sample]:
        """All prompts. Raises CheckStreamError where not a single one can be judged."""
        requests = [Request(prompt=prompt) for prompt in self.prompts]
        hot = zip(_SEEDS, self.prompts, strict=False)
        requests += [Request(prompt=prompt, temperature=1.9, seed=seed) for seed, prompt in hot]
        samples: list[Sample] = []
        for request in requests:
            try:
                samples.append(self.sample(request))
            except Unsupported as error:
                if request.seed is None:
                    raise CheckStreamError(f"--model: {error}") from None
                continue  # no seeds, no hot prompts
            if samples[0].refusal and samples[0].refusal.lost:  # the others would each wait as long
                raise CheckStreamError(f"the first prompt was not answered: {samples[0].problem}")
        if all(sample.refusal for sample in samples):
            raise CheckStreamError(f"no prompt was answered; the first: {samples[0].problem}")
        return samples

    @property
    def streamed(self) -> list[Sample]:
        """Samples whose stream began, whether or not its text can be compared."""
        return [sample for sample in self.samples if not sample.refusal and sample.stream.has_begun]

    @property
    def comparable(self) -> list[Sample]:
        """Raises Unsupported where there is none, as do the lists of some of them."""
        if found := [sample for sample in self.samples if not sample.problem]:
            return found
        raise Unsupported(f"no prompt has an answer in one piece that repeats: {self.samples[0].problem}")

    @property
    def greedy(self) -> list[Sample]:
        if found := [sample for sample in self.comparable if sample.request.temperature == 0]:
            return found
        raise Unsupported("no prompt has a greedy answer in one piece that repeats")

    @cached_property
    def long(self) -> list[Sample]:
        """Greedy samples to cut stop strings out of; first that with the most different characters."""
        found = [sample for sample in self.greedy if len(sample.whole.text) >= 8]
        if not found:
            raise Unsupported("no answer that repeats is longer than 8 characters")
        return sorted(found, key=lambda sample: -len(set(sample.whole.text)))

    def sample(self, request: Request) -> Sample:
        try:
            whole = self.adapter.answer(request)
        except RequestError as error:
            return Sample(request=request, problem=f"refused in one piece: {error}", refusal=error)
        try:
            stream = self.adapter.record(request)
        except RequestError as error:
            stream = Recording(error=str(error))
        problem = ""
        try:
            if self.adapter.answer(request).text != whole.text:
                problem = "the server's own answers in one piece differ from each other"
        except RequestError as error:
            problem = f"refused when asked again: {error}"
        return Sample(request=request, whole=whole, stream=stream, problem=problem)

    def at_once(
        self,
        requests: Sequence[Request],
        *,
        stream: bool,
        pause: float = 0,
        on_first: Callable[[], None] = lambda: None,
    ) -> list[Recording]:
        """All requests at the same time, or `pause` seconds after each other; results in order, an answer in
        one piece as one chunk. `on_first` is called at the first chunk of each stream, and where there is
        none."""
        results = [Recording(error="no answer") for _ in requests]
        gate = threading.Barrier(1 if pause else len(requests))

        def work(index: int) -> None:
            gate.wait()
            try:
                if stream:
                    results[index] = self.adapter.record(requests[index], on_first=on_first)
                else:
                    text = self.adapter.answer(requests[index]).text
                    results[index] = Recording(chunks=[Chunk(text=text)])
            except RequestError as error:
                results[index] = Recording(error=str(error))
                on_first()

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(requests))]
        for thread in threads:
            thread.start()
            time.sleep(pause)
        for thread in threads:
            thread.join()
        return results


def difference(expected: str, seen: str) -> str:
    """Where two texts part, in words."""
    if expected == seen:
        return "equal"
    same = takewhile(lambda pair: pair[0] == pair[1], zip(expected, seen, strict=False))
    at = sum(1 for _ in same)
    if at == len(seen):
        return f"{len(expected) - at} characters are missing at the end: {shorten(expected[at:])}"
    if at == len(expected):
        return f"{len(seen) - at} characters too many at the end: {shorten(seen[at:])}"
    begin = max(0, at - 10)
    return (
        f"at character {at}: {shorten(seen[begin : at + 20])} instead of {shorten(expected[begin : at + 20])}"
    )


def shorten(text: str, length: int = 80) -> str:
    """Quoted, cut in the middle."""
    if len(text) > length:
        text = f"{text[: length // 2]}...{text[-length // 2 :]}"
    return repr(text)
