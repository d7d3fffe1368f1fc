"""Checks of what a stream says: its text, its stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from quire.check_stream.lab import Lab, Sample, difference, shorten
from quire.check_stream.outcome import Outcome, Verdict, skipped
from quire.check_stream.protocol import Request, RequestError


def joined_text(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in lab.comparable:
        verdict.text(sample.request, sample.stream.text, sample.whole.text, error=sample.stream.error)
    left_out = len(lab.samples) - len(lab.comparable)
    note = f" ({left_out} left out: their answers in one piece differ from each other)" if left_out else ""
    return verdict.outcome(f"streams equal the answer in one piece{note}", "")


def spaces(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in lab.comparable:
        whole, joined = sample.whole.text, sample.stream.text
        # Where more is wrong than white space, joined-text says it.
        if (
            not sample.stream.has_begun
            or not _spaces(whole)
            or "".join(joined.split()) != "".join(whole.split())
        ):
            continue
        verdict.case(
            sample.request,
            joined == whole,
            seen=f"{_spaces(joined)} white space characters; {difference(whole, joined)}",
            expected=f"{_spaces(whole)} white space characters: {shorten(whole)}",
        )
    reason = "no answer has white space, or streams differ from them in more than that"
    return verdict.outcome("streams have all their white space", reason)


def characters(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in lab.comparable:
        whole, joined = sample.whole.text, sample.stream.text
        if not sample.stream.has_begun or whole.isascii():
            continue
        verdict.case(
            sample.request,
            _broken(joined) <= _broken(whole),
            seen=f"{_broken(joined)} broken characters; {difference(whole, joined)}",
            expected=f"{_broken(whole)} broken characters: {shorten(whole)}",
        )
    reason = "no answer has a character outside ASCII: give prompts with --prompt-file"
    return verdict.outcome("streams with characters outside ASCII have them whole", reason)


def stop_cut(lab: Lab) -> Outcome:
    return _stop_outcome(lab, [stop for stop in _stops(lab) if not stop.crosses])


def stop_across_chunks(lab: Lab) -> Outcome:
    stops = [stop for stop in _stops(lab) if stop.crosses]
    return _stop_outcome(lab, stops, "no stream with two chunks of text to cut a stop string from")


def stop_included(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for stop in _stops(lab):
        request = replace(stop.request, include_stop=True)
        try:
            whole = lab.adapter.answer(request).text
        except RequestError as error:
            if lab.adapter.reads_sampling_json or error.lost:
                raise
            return skipped(f"include_stop_str_in_output is an extension of this protocol: {error}")
        if not verdict.cases and whole == stop.expected and not lab.adapter.reads_sampling_json:
            return skipped("include_stop_str_in_output is ignored; it is an extension of this protocol")
        _judge(verdict, lab, request, whole, stop.expected + stop.stop)
    return verdict.outcome("answers end with the stop string", "")


def stop_partial(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for sample in _cuttable(lab):
        text = sample.whole.text
        # Begins like the end of the answer, and never completes.
        request = replace(sample.request, stop=text[-3:] + "§§")
        _judge(verdict, lab, request, lab.adapter.answer(request).text, text)
    return verdict.outcome("answers are whole though a stop string began at their end", "")


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """A stop string out of an answer, and what it must leave."""

    request: Request
    stop: str
    expected: str
    crosses: bool  # chosen so that it lies across a chunk border


def _stops(lab: Lab) -> Iterator[_Stop]:
    for sample in _cuttable(lab):
        text = sample.whole.text
        body = text.rstrip("\ufffd")  # the budget may end inside a character
        third = len(body) // 3
        late = max(set(body), key=lambda character: (body.index(character), character))
        chosen = [(late, False), (body[third : third + 3], False)]
        chosen += [(body[i : i + 4], False) for i in range(third, len(body) - 4) if body[i].isspace()][:1]
        borders = _borders(sample)
        if borders:
            border = max(borders, key=lambda at: body.index(body[max(0, at - 2) : at + 2]))
            chosen.append((body[max(0, border - 2) : border + 2], True))
            middle = borders[len(borders) // 2]
            chosen.append((body[max(1, middle - 12) : middle + 12], True))
            chosen.append((body[third : third + len(body) // 2], True))
        for stop, crosses in dict(chosen).items():
            if stop and "\ufffd" not in stop:
                request = replace(sample.request, stop=stop)
                yield _Stop(request=request, stop=stop, expected=text.partition(stop)[0], crosses=crosses)


def _borders(sample: Sample) -> list[int]:
    """Places in the text where a chunk ends and the next one begins."""
    if sample.stream.text != sample.whole.text:
        return []
    length = len(sample.whole.text.rstrip("\ufffd"))
    chunks = [chunk.text for chunk in sample.stream.chunks if chunk.text]
    return [at for at in accumulate(map(len, chunks)) if at < length]


def _cuttable(lab: Lab) -> list[Sample]:
    """The answer with the most characters, and the longest other one with some outside ASCII."""
    others = [sample for sample in lab.long[1:] if not sample.whole.text.isascii()]
    return lab.long[:1] + sorted(others, key=lambda sample: -len(sample.whole.text))[:1]


def _stop_outcome(lab: Lab, stops: Sequence[_Stop], reason: str = "") -> Outcome:
    verdict = Verdict(lab.adapter)
    for stop in stops:
        _judge(verdict, lab, stop.request, lab.adapter.answer(stop.request).text, stop.expected)
    return verdict.outcome("answers end right before the stop string", reason)


def _judge(verdict: Verdict, lab: Lab, request: Request, whole: str, expected: str) -> None:
    """Two cases: `whole`, the answer in one piece, and the stream."""
    recording = lab.adapter.record(request)
    if recording.error:
        raise RequestError(recording.error)
    for text, stream, name in ((whole, False, "one piece"), (recording.text, True, "stream")):
        verdict.case(
            request,
            text == expected,
            seen=f"{name}: {difference(expected, text)}",
            expected=shorten(expected),
            stream=stream,
            remark=f"stop {request.stop!r}: ",
        )


def _spaces(text: str) -> int:
    return sum(character.isspace() for character in text)


def _broken(text: str) -> int:
    """Replacement characters, and halves of surrogate pairs that JSON escapes can carry."""
    return sum(character == "\ufffd" or "\ud800" <= character <= "\udfff" for character in text)
