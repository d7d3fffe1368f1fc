"""Checks of a stream's form: its chunks, its end, its counts, when it arrives."""

from __future__ import annotations

from dataclasses import replace

from quire.check_stream.lab import Lab
from quire.check_stream.outcome import Outcome, Verdict, passed, skipped
from quire.check_stream.protocol import Chunk, Recording, Unsupported

_LIMITS = (1, 7, 24)
_TIMED_TOKENS = 96
_SHORTEST = 0.05  # seconds; below, the network's own delays hide what the server does
_ATTEMPTS = 3
_NO_STREAM = "no stream could be read"


def empty_chunks(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in lab.streamed:
        chunks = sample.stream.chunks
        empty = [index for index, chunk in enumerate(chunks, 1) if not _is_useful(chunk)]
        if empty and empty[-1] == len(chunks) and not lab.adapter.has_finish_reason:
            empty.pop()  # the last one says that it is the last
        verdict.case(
            sample.request,
            not empty,
            seen=f"{len(empty)} of {len(chunks)} chunks are empty, the first is number {[*empty, 0][0]}",
            expected="text, a finish reason or a token count in each chunk",
        )
    return verdict.outcome("streams without an empty chunk", _NO_STREAM)


def finish_reason(lab: Lab) -> Outcome:
    _require_finish_reason(lab)
    verdict = Verdict(lab.adapter)
    for sample in lab.streamed:
        reasons = sample.stream.finish_reasons
        texts = [chunk for chunk in sample.stream.chunks if chunk.purpose != "usage"]
        is_last = bool(texts) and bool(texts[-1].finish_reason)
        seen = f"{len(reasons)} finish reasons {reasons}"
        if len(reasons) == 1 and not is_last:
            seen += ", not in the last chunk"
        verdict.case(
            sample.request,
            len(reasons) == 1 and is_last,
            seen=sample.stream.error or seen,
            expected="one, in the last chunk",
        )
    return verdict.outcome("streams have one finish reason, at the end", _NO_STREAM)


def finish_value(lab: Lab) -> Outcome:
    _require_finish_reason(lab)
    sample = lab.long[0]
    text = sample.whole.text
    cases = [(replace(sample.request, stop=text[len(text) // 2 : len(text) // 2 + 3]), "stop")]
    counted = sample.whole.num_output_tokens
    if counted == sample.request.max_tokens or sample.whole.finish_reason == "length":
        cases.append((replace(sample.request, max_tokens=3), "length"))
    verdict = Verdict(lab.adapter)
    for request, expected in cases:
        whole = lab.adapter.answer(request).finish_reason or ""
        streamed = ", ".join(lab.adapter.record(request).finish_reasons)
        for seen, stream in ((whole, False), (streamed, True)):
            verdict.case(request, seen == expected, seen=repr(seen), expected=repr(expected), stream=stream)
    return verdict.outcome("answers say why they ended", "")


def done_marker(lab: Lab) -> Outcome:
    if not lab.adapter.ends_with_done:
        raise Unsupported("this protocol has no [DONE]")
    verdict = Verdict(lab.adapter)
    for sample in lab.streamed:
        count = sample.stream.num_done
        verdict.case(sample.request, count == 1, seen=f"{count} times [DONE]", expected="once")
    return verdict.outcome("streams end with [DONE]", _NO_STREAM)


def max_tokens(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    answered = [sample for sample in lab.samples if not sample.refusal]
    request = max(
        answered, key=lambda sample: (sample.request.temperature == 0, len(sample.whole.text))
    ).request
    lengths: dict[int, int] = {}
    for limit in _LIMITS:
        request = replace(request, max_tokens=limit)
        reply, recording = lab.adapter.answer(request), lab.adapter.record(request)
        lengths[limit] = len(reply.text)
        for stream, count, reason in (
            (False, reply.num_output_tokens, reply.finish_reason),
            (True, recording.num_output_tokens, [None, *recording.finish_reasons][-1]),
        ):
            if count is not None:
                verdict.case(
                    request,
                    count == limit if reason == "length" else 0 <= count <= limit,
                    seen=f"{count} tokens, finish reason {reason or ''!r}",
                    expected=f"{limit} tokens, or fewer where the model ends by itself",
                    stream=stream,
                )
    first, last = _LIMITS[0], _LIMITS[-1]
    if not verdict.cases and lengths[last] > 8:
        verdict.case(
            replace(request, max_tokens=first),
            lengths[first] < lengths[last],
            seen=f"{lengths[first]} characters",
            expected=f"fewer than the {lengths[last]} of max_tokens {last}",
            stream=False,
        )
    return verdict.outcome("answers keep to max_tokens", "no token counts, and an answer too short to tell")


def usage(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in lab.comparable:
        whole, stream, request = sample.whole, sample.stream, sample.request
        if stream.error:
            continue
        for name, one, joined in (
            ("output", whole.num_output_tokens, stream.num_output_tokens),
            ("input", whole.num_input_tokens, stream.num_input_tokens),
        ):
            seen = f"{joined} {name} tokens in the stream"
            if name == "output" and _looks_cumulative(stream.output_counts, one):
                seen += " (the counts of its chunks grow: totals so far, where each chunk's own are due)"
            if one is not None:
                verdict.case(request, joined == one, seen=seen, expected=f"{one}, as in one piece")
        total = whole.num_total_tokens
        if total is not None:
            parts = (whole.num_input_tokens or 0) + (whole.num_output_tokens or 0)
            verdict.case(request, total == parts, seen=f"total_tokens {total}", expected=str(parts))
    return verdict.outcome("token counts agree", "no token counts")


def chunks_in_time(lab: Lab) -> Outcome:
    request = replace(lab.long[0].request, max_tokens=_TIMED_TOKENS)
    share, seen = 0.0, "no text"
    for _ in range(_ATTEMPTS):  # one busy moment of either machine proves nothing
        recording = lab.adapter.record(request)
        times = [chunk.time for chunk in recording.chunks if chunk.text]
        if times:
            total, spread = times[-1] - recording.began, times[-1] - times[0]
            share = spread / total
            seen = f"{len(times)} chunks with text arrived within {spread:.3f} s of {total:.3f} s"
            if total < _SHORTEST:
                return skipped(f"too fast to tell: {seen}")
        if share >= 0.1:
            return passed(seen)
    if not times or _is_short(recording):
        return skipped("no stream long enough")
    verdict = Verdict(lab.adapter)
    verdict.case(request, False, seen=seen, expected="chunks spread over the time of the answer")
    return verdict.outcome("", "")


def _require_finish_reason(lab: Lab) -> None:
    if not lab.adapter.has_finish_reason:
        raise Unsupported("the model has no output finish_reason")


def _is_useful(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.finish_reason or chunk.num_output_tokens or chunk.purpose)


def _is_short(recording: Recording) -> bool:
    count = recording.num_output_tokens
    return count < 16 if count is not None else len(recording.text) < 24


def _looks_cumulative(counts: list[int], total: int | None) -> bool:
    return len(counts) > 1 and counts[-1] == total and counts == sorted(counts)
