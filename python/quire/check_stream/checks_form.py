"""Checks of a stream's form: its chunks, its end, its counts, when it arrives."""

from __future__ import annotations

from dataclasses import replace

from quire.check_stream.lab import Lab
from quire.check_stream.outcome import Outcome, Verdict, failed, passed, skipped
from quire.check_stream.protocol import Chunk, Recording

_LIMITS = (1, 7, 24)
_TIMED_TOKENS = 96
_SHORTEST = 0.05  # seconds; below, the network's own delays hide what the server does
_ATTEMPTS = 3


def empty_chunks(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample, recording in lab.recordings:
        last = recording.chunks[-1] if recording.chunks else None
        empty = [
            index
            for index, chunk in enumerate(recording.chunks)
            if not _is_useful(chunk) and not (chunk is last and not lab.adapter.has_finish_reason)
        ]
        verdict.case(
            not empty,
            sent=lab.adapter.show(sample.request, stream=True),
            seen=f"{len(empty)} of {len(recording.chunks)} chunks are empty, the first is number "
            f"{empty[0] + 1 if empty else 0}",
            expected="text, a finish reason or a token count in each chunk",
        )
    return verdict.outcome("streams without an empty chunk", "no stream could be read")


def finish_reason(lab: Lab) -> Outcome:
    if not lab.adapter.has_finish_reason:
        return skipped("the model has no output finish_reason")
    verdict = Verdict()
    for sample, recording in lab.recordings:
        reasons = recording.finish_reasons
        texts = [chunk for chunk in recording.chunks if chunk.purpose != "usage"]
        is_last = bool(texts) and bool(texts[-1].finish_reason)
        seen = f"{len(reasons)} finish reasons {reasons}"
        if len(reasons) == 1 and not is_last:
            seen += ", not in the last chunk"
        verdict.case(
            len(reasons) == 1 and is_last,
            sent=lab.adapter.show(sample.request, stream=True),
            seen=recording.error or seen,
            expected="one, in the last chunk",
        )
    return verdict.outcome("streams have one finish reason, at the end", "no stream could be read")


def finish_value(lab: Lab) -> Outcome:
    if not lab.adapter.has_finish_reason:
        return skipped("the model has no output finish_reason")
    sample = lab.longest
    if sample is None or sample.whole is None:
        return skipped("no prompt has a long answer in one piece that repeats")
    text = sample.whole.text
    verdict = Verdict()
    cases = [(replace(sample.request, stop=text[len(text) // 2 : len(text) // 2 + 3]), "stop")]
    counted = sample.whole.num_output_tokens
    if counted == sample.request.max_tokens or sample.whole.finish_reason == "length":
        cases.append((replace(sample.request, max_tokens=3), "length"))
    for request, expected in cases:
        for stream in (False, True):
            if stream:
                seen = ", ".join(lab.adapter.record(request).finish_reasons)
            else:
                seen = lab.adapter.answer(request).finish_reason or ""
            sent = lab.adapter.show(request, stream=stream)
            verdict.case(seen == expected, sent=sent, seen=repr(seen), expected=repr(expected))
    return verdict.outcome("answers say why they ended", "")


def done_marker(lab: Lab) -> Outcome:
    if not lab.adapter.ends_with_done:
        return skipped("this protocol has no [DONE]")
    verdict = Verdict()
    for sample, recording in lab.recordings:
        sent = lab.adapter.show(sample.request, stream=True)
        verdict.case(
            recording.num_done == 1, sent=sent, seen=f"{recording.num_done} times [DONE]", expected="once"
        )
    return verdict.outcome("streams end with [DONE]", "no stream could be read")


def max_tokens(lab: Lab) -> Outcome:
    verdict = Verdict()
    sample = lab.longest or next((item for item in lab.samples if item.whole is not None), None)
    if sample is None:
        return skipped("no prompt was answered")
    counted = False
    lengths: dict[int, int] = {}
    for limit in _LIMITS:
        request = replace(sample.request, max_tokens=limit)
        reply = lab.adapter.answer(request)
        recording = lab.adapter.record(request)
        lengths[limit] = len(reply.text)
        reasons = recording.finish_reasons
        for stream, count, reason in (
            (False, reply.num_output_tokens, reply.finish_reason or ""),
            (True, recording.num_output_tokens, reasons[-1] if reasons else ""),
        ):
            if count is None:
                continue
            counted = True
            verdict.case(
                count == limit if reason == "length" else 0 <= count <= limit,
                sent=lab.adapter.show(request, stream=stream),
                seen=f"{count} tokens, finish reason {reason!r}",
                expected=f"{limit} tokens, or fewer where the model ends by itself",
            )
    if not counted and lengths[_LIMITS[-1]] > 8:
        verdict.case(
            lengths[1] < lengths[_LIMITS[-1]],
            sent=lab.adapter.show(replace(sample.request, max_tokens=1), stream=False),
            seen=f"{lengths[1]} characters",
            expected=f"fewer than the {lengths[_LIMITS[-1]]} of max_tokens {_LIMITS[-1]}",
        )
    return verdict.outcome("answers keep to max_tokens", "no token counts, and an answer too short to tell")


def usage(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample in lab.comparable:
        if sample.whole is None or sample.stream is None or sample.stream.error:
            continue
        whole, stream = sample.whole, sample.stream
        sent = lab.adapter.show(sample.request, stream=True)
        for name, one, joined in (
            ("output", whole.num_output_tokens, stream.num_output_tokens),
            ("input", whole.num_input_tokens, stream.num_input_tokens),
        ):
            if one is None:
                continue
            seen = f"{joined} {name} tokens in the stream"
            if name == "output" and _looks_cumulative(stream, one):
                seen += " (the counts of its chunks grow: totals so far, where each chunk's own are due)"
            verdict.case(joined == one, sent=sent, seen=seen, expected=f"{one}, as in one piece")
        total = whole.num_total_tokens
        if total is not None:
            parts = (whole.num_input_tokens or 0) + (whole.num_output_tokens or 0)
            verdict.case(total == parts, sent=sent, seen=f"total_tokens {total}", expected=str(parts))
    return verdict.outcome("token counts agree", "no token counts, or no answer that repeats")


def chunks_in_time(lab: Lab) -> Outcome:
    sample = lab.longest
    if sample is None:
        return skipped("no prompt has a long answer in one piece that repeats")
    request = replace(sample.request, max_tokens=_TIMED_TOKENS)
    shares, seen = [], ""
    for _ in range(_ATTEMPTS):  # one busy moment of either machine proves nothing
        recording = lab.adapter.record(request)
        times = [chunk.time for chunk in recording.chunks if chunk.text]
        if not times:
            continue
        total, spread = times[-1] - recording.began, times[-1] - times[0]
        seen = f"{len(times)} chunks with text arrived within {spread:.3f} s of {total:.3f} s"
        if total < _SHORTEST:
            return skipped(f"too fast to tell: {seen}")
        shares.append(spread / total)
        if shares[-1] >= 0.1:
            return passed(seen)
    if not shares or _is_short(recording):
        return skipped("no stream long enough")
    sent = lab.adapter.show(request, stream=True)
    return failed(sent=sent, seen=seen, expected="chunks spread over the time of the answer")


def _is_useful(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.finish_reason or chunk.num_output_tokens or chunk.purpose)


def _is_short(recording: Recording) -> bool:
    count = recording.num_output_tokens
    return count < 16 if count is not None else len(recording.text) < 24


def _looks_cumulative(recording: Recording, total: int) -> bool:
    counts = [chunk.num_output_tokens for chunk in recording.chunks if chunk.num_output_tokens is not None]
    return len(counts) > 1 and counts[-1] == total and counts == sorted(counts)
