"""The material that checks judge: prompts, and what the server made of them in one piece and as a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from quire.check_stream.protocol import (
    Adapter,
    CheckStreamError,
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


@dataclass(kw_only=True)
class Sample:
    """One request, asked in one piece, as a stream, and in one piece again."""

    request: Request
    whole: Reply | None = None
    stream: Recording | None = None
    problem: str = ""  # why whole and stream cannot be compared
    stream_error: str = ""  # the stream failed though the answer in one piece did not
    lost: bool = False  # nothing came back at all

    @property
    def is_comparable(self) -> bool:
        return not self.problem


class Lab:
    """Asks the server, once for all checks."""

    def __init__(
        self,
        adapter: Adapter,
        prompts: Sequence[str] = (),
        concurrency: int = 16,
        body_megabytes: int = 16,
    ) -> None:
        self.adapter = adapter
        self.body_megabytes = body_megabytes
        self.prompts = tuple(prompts) or PROMPTS
        self.concurrency = concurrency

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
            if samples[0].lost:  # the others would each wait as long
                raise CheckStreamError(f"the first prompt was not answered: {samples[0].problem}")
        if all(sample.whole is None for sample in samples):
            raise CheckStreamError(f"no prompt was answered; the first: {samples[0].problem}")
        return samples

    @property
    def comparable(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.is_comparable]

    @property
    def recordings(self) -> list[tuple[Sample, Recording]]:
        """The streams that ended, whether or not their text can be compared."""
        return [(sample, sample.stream) for sample in self.samples if sample.stream is not None]

    @cached_property
    def longest(self) -> Sample | None:
        """A greedy sample to cut stop strings out of: with the most different characters."""
        good = [
            sample
            for sample in self.comparable
            if sample.request.temperature == 0 and sample.whole and len(sample.whole.text) >= 8
        ]
        return max(good, key=lambda sample: len(set(_text(sample))), default=None)

    def sample(self, request: Request) -> Sample:
        sample = Sample(request=request)
        try:
            sample.whole = self.adapter.answer(request)
        except RequestError as error:
            sample.problem = f"refused in one piece: {error}"
            sample.lost = error.lost
            return sample
        try:
            sample.stream = self.adapter.record(request)
            sample.stream_error = sample.stream.error
        except RequestError as error:
            sample.stream_error = str(error)
        try:
            again = self.adapter.answer(request).text
        except RequestError as error:
            sample.problem = f"refused when asked again: {error}"
            return sample
        if again != sample.whole.text:
            sample.problem = "the server's own answers in one piece differ from each other"
        return sample

    def at_once(
        self,
        requests: Sequence[Request],
        *,
        stream: bool,
        pause: float = 0,
        on_first: Callable[[], None] = lambda: None,
    ) -> list[Recording | Reply | RequestError]:
        """All requests at the same time, or `pause` seconds after each other; results in order. `on_first` is
        called at the first chunk of each stream, and where there is none."""
        results: list[Recording | Reply | RequestError] = [RequestError("no answer")] * len(requests)
        gate = threading.Barrier(1 if pause else len(requests))

        def work(index: int) -> None:
            gate.wait()
            try:
                if stream:
                    results[index] = self.adapter.record(requests[index], on_first=on_first)
                else:
                    results[index] = self.adapter.answer(requests[index])
            except RequestError as error:
                results[index] = error
                on_first()

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(requests))]
        for thread in threads:
            thread.start()
            time.sleep(pause)
        for thread in threads:
            thread.join()
        return results


def _text(sample: Sample) -> str:
    return sample.whole.text if sample.whole else ""


def difference(expected: str, seen: str) -> str:
    """Where two texts part, in words."""
    if expected == seen:
        return "equal"
    at = next(
        (index for index, (a, b) in enumerate(zip(expected, seen, strict=False)) if a != b),
        min(len(expected), len(seen)),
    )
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
