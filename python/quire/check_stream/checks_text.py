"""Checks of what a stream says: its text, its stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from quire.check_stream.lab import Lab, Sample, difference, shorten
from quire.check_stream.outcome import Outcome, Verdict, skipped
from quire.check_stream.protocol import Recording, Reply, Request, RequestError

_NOTHING = "no prompt has an answer in one piece that repeats: {}"


def joined_text(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample, whole in _pairs(lab):
        joined = sample.stream.text if sample.stream else ""
        verdict.case(
            joined == whole.text and not sample.stream_error,
            sent=lab.adapter.show(sample.request, stream=True),
            seen=sample.stream_error or difference(whole.text, joined),
            expected=shorten(whole.text),
        )
    left_out = len(lab.samples) - len(lab.comparable)
    note = f" ({left_out} left out: their answers in one piece differ from each other)" if left_out else ""
    return verdict.outcome(f"streams equal the answer in one piece{note}", _reason(lab))


def spaces(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample, whole in _pairs(lab):
        if sample.stream is None or not any(character.isspace() for character in whole.text):
            continue
        joined = sample.stream.text
        if "".join(joined.split()) != "".join(whole.text.split()):
            continue  # more is wrong than white space, which joined-text says
        verdict.case(
            joined == whole.text,
            sent=lab.adapter.show(sample.request, stream=True),
            seen=f"{_spaces(joined)} white space characters; {difference(whole.text, joined)}",
            expected=f"{_spaces(whole.text)} white space characters: {shorten(whole.text)}",
        )
    reason = "no answer has white space, or streams differ from them in more than that"
    return verdict.outcome("streams have all their white space", _reason(lab) or reason)


def characters(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample, whole in _pairs(lab):
        if sample.stream is None or whole.text.isascii():
            continue
        joined = sample.stream.text
        verdict.case(
            _broken(joined) <= _broken(whole.text),
            sent=lab.adapter.show(sample.request, stream=True),
            seen=f"{_broken(joined)} broken characters; {difference(whole.text, joined)}",
            expected=f"{_broken(whole.text)} broken characters: {shorten(whole.text)}",
        )
    reason = _reason(lab) or "no answer has a character outside ASCII: give prompts with --prompt-file"
    return verdict.outcome("streams with characters outside ASCII have them whole", reason)


def stop_cut(lab: Lab) -> Outcome:
    return _stop_outcome(lab, [stop for stop in _stops(lab) if not stop.crosses])


def stop_across_chunks(lab: Lab) -> Outcome:
    stops = [stop for stop in _stops(lab) if stop.crosses]
    return _stop_outcome(lab, stops, "no stream with two chunks of text to cut a stop string from")


def stop_included(lab: Lab) -> Outcome:
    verdict = Verdict()
    for stop in _stops(lab):
        request = replace(stop.request, include_stop=True)
        end = stop.text.index(stop.stop) + len(stop.stop)
        expected = stop.text[:end]
        try:
            whole = lab.adapter.answer(request).text
        except RequestError as error:
            if lab.adapter.knows_include_stop or error.lost:
                raise
            return skipped(f"include_stop_str_in_output is an extension of this protocol: {error}")
        if not verdict.cases and whole == stop.expected and not lab.adapter.knows_include_stop:
            return skipped("include_stop_str_in_output is ignored; it is an extension of this protocol")
        _case(verdict, lab, request, whole, expected, stream=False)
        _case(verdict, lab, request, lab.adapter.record(request), expected, stream=True)
    return verdict.outcome("answers end with the stop string", _no_text(lab))


def stop_partial(lab: Lab) -> Outcome:
    verdict = Verdict()
    for sample in _cuttable(lab):
        assert sample.whole
        text = sample.whole.text
        # Begins like the end of the answer, and never completes.
        request = replace(sample.request, stop=text[-3:] + "§§")
        _case(verdict, lab, request, lab.adapter.answer(request).text, text, stream=False)
        _case(verdict, lab, request, lab.adapter.record(request), text, stream=True)
    return verdict.outcome("answers are whole though a stop string began at their end", _no_text(lab))


@dataclass(frozen=True, kw_only=True)
class _Stop:
    """A stop string out of an answer, and what it must leave."""

    request: Request
    text: str  # the answer without it
    stop: str
    crosses: bool  # chosen so that it lies across a chunk border

    @property
    def expected(self) -> str:
        return self.text[: self.text.index(self.stop)]


def _stops(lab: Lab) -> Iterator[_Stop]:
    for sample in _cuttable(lab):
        assert sample.whole
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
                yield _Stop(request=replace(sample.request, stop=stop), text=text, stop=stop, crosses=crosses)


def _borders(sample: Sample) -> list[int]:
    """Places in the text where a chunk ends and the next one begins."""
    if sample.stream is None or sample.whole is None or sample.stream.text != sample.whole.text:
        return []
    length = len(sample.whole.text.rstrip("\ufffd"))
    places, at = [], 0
    for chunk in sample.stream.chunks:
        at += len(chunk.text)
        if chunk.text and 0 < at < length:
            places.append(at)
    return places


def _cuttable(lab: Lab) -> list[Sample]:
    """The longest answer, and the longest with other characters than ASCII."""
    samples = [lab.longest] if lab.longest else []
    others = [
        sample
        for sample in lab.comparable
        if sample.request.temperature == 0
        and sample not in samples
        and sample.whole
        and not sample.whole.text.isascii()
        and len(sample.whole.text) >= 8
    ]
    return samples + sorted(others, key=lambda item: -len(item.whole.text if item.whole else ""))[:1]


def _stop_outcome(lab: Lab, stops: Sequence[_Stop], reason: str = "") -> Outcome:
    verdict = Verdict()
    for stop in stops:
        request = stop.request
        _case(verdict, lab, request, lab.adapter.answer(request).text, stop.expected, stream=False)
        _case(verdict, lab, request, lab.adapter.record(request), stop.expected, stream=True)
    return verdict.outcome("answers end right before the stop string", _no_text(lab) or reason)


def _case(
    verdict: Verdict, lab: Lab, request: Request, got: str | Recording, expected: str, *, stream: bool
) -> None:
    text = got.text if isinstance(got, Recording) else got
    if isinstance(got, Recording) and got.error:
        raise RequestError(got.error)
    verdict.case(
        text == expected,
        sent=f"stop {request.stop!r}: {lab.adapter.show(request, stream=stream)}",
        seen=f"{'stream' if stream else 'one piece'}: {difference(expected, text)}",
        expected=shorten(expected),
    )


def _pairs(lab: Lab) -> list[tuple[Sample, Reply]]:
    return [(sample, sample.whole) for sample in lab.comparable if sample.whole is not None]


def _spaces(text: str) -> int:
    return sum(character.isspace() for character in text)


def _broken(text: str) -> int:
    """Replacement characters, and halves of surrogate pairs that JSON escapes can carry."""
    return sum(character == "\ufffd" or "\ud800" <= character <= "\udfff" for character in text)


def _reason(lab: Lab) -> str:
    if lab.comparable:
        return ""
    return _NOTHING.format(lab.samples[0].problem)


def _no_text(lab: Lab) -> str:
    return "" if _cuttable(lab) else _reason(lab) or "no answer is longer than 8 characters"
