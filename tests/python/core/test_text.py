"""What leaves the engine decodes run by run to what `tokenizers` decodes at once, up to the first stop."""

from __future__ import annotations

import random

import _core_parts
import numpy as np
import pytest
from core_helpers import make_core
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quire import _core
from text_helpers import CASES, Case


def first_stop(text: str, stops: list[str], after: int = 0) -> tuple[int, int] | None:
    """[begin, end) of the match that is complete first; of those complete together, the longest."""
    matches = []
    for stop in stops:
        begin = text.find(stop, max(0, after - len(stop) + 1))
        if begin >= 0:
            matches.append((begin + len(stop), begin))
    if not matches:
        return None
    end, begin = min(matches)
    return begin, end


def hold_length(text: str, stops: list[str]) -> int:
    """Characters at the end of text that are the longest proper prefix of a stop string."""
    return max(n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n]))


def naive_stop(
    case: Case, prompt: list[int], output: list[int], stops: list[str], min_tokens: int, skip_special: bool
) -> tuple[int, int, int] | None:
    """(ids, begin, end): how many ids there are when the first stop string is complete, and where it is.

    Decodes everything anew after each id, and searches what an unfinished character at the end cannot change.
    Matches that are complete within the first min_tokens ids do not count.
    """
    after = 0
    for count in range(1, len(output) + 1):
        text = case.text(prompt, output[:count], skip_special)
        if case.is_open(output[:count], skip_special):
            if case.table.kind != _core.DecoderKind.BYTE_LEVEL:
                continue  # the whole byte run may still change; its complete characters had their turn
            text = text[:-1]
        if count <= min_tokens:
            after = len(text)
        elif found := first_stop(text, stops, after):
            return count, *found
    return None


class Stream:
    """Feeds given ids through an EngineCore and joins what leaves."""

    def __init__(self, case: Case, prompt: list[int], **params: object) -> None:
        self.case = case
        self.skip_special = params.get("skip_special_tokens", True)
        self.core = make_core(case.table, vocab_size=case.vocab_size, max_model_len=256)
        self.core.add_request(1, prompt, _core.SamplingParams(**params))
        self.ids: list[int] = []
        self.text = ""
        self.finish_reason = ""

    def feed(self, token: int) -> bool:
        """Returns whether the request goes on."""
        batch = self.core.schedule()
        while batch.num_sampled == 0:
            self.core.update(np.empty(0, dtype=np.int32))
            batch = self.core.schedule()
        self.take(self.core.update(np.array([token], dtype=np.int32)))
        return not self.finish_reason

    def cancel(self) -> None:
        self.core.cancel(1)
        self.take(self.core.take_outputs())

    def take(self, outputs: _core.StepOutputs) -> None:
        for release in outputs.releases:
            self.ids += release.token_ids
            text_ids = release.token_ids[: release.num_text_ids]
            self.text += self.case.table.decode(
                text_ids, release.is_first, release.trim, self.skip_special, release.open_text
            )
            self.finish_reason = release.finish_reason


@st.composite
def streams(draw: st.DrawFn, case: Case) -> tuple[list[int], list[int], bool]:
    """A prompt that ends at a complete character, an output of any ids, whether to skip special tokens."""
    prompt = draw(st.lists(st.sampled_from(case.prompt_ids), min_size=1, max_size=4))
    # Byte tokens crowd the vocabularies that have them: without a second choice, words would be rare.
    ids = st.integers(0, case.vocab_size - 1) | st.sampled_from(case.prompt_ids)
    return prompt, draw(st.lists(ids, min_size=1, max_size=30)), draw(st.booleans())


def pick_stops(rng: random.Random, text: str) -> list[str]:
    """Parts of the text, some a little changed: stop strings that match, nearly match and overlap."""
    stops = []
    for _ in range(rng.randrange(1, 5)):
        begin = rng.randrange(max(len(text), 1))
        stop = text[begin : begin + rng.randrange(1, 8)]
        if rng.random() < 0.3:
            stop += rng.choice("ab €é")
        stops.append(stop or "a")
    return stops


@pytest.mark.parametrize("name", CASES)
def test_decode_equals_tokenizers(name: str) -> None:
    """One-shot decode of any ids is that of `tokenizers`."""
    case = CASES[name]

    @settings(max_examples=examples(400))
    @given(st.lists(st.integers(0, case.vocab_size - 1), max_size=12), st.booleans())
    def check(ids: list[int], skip_special: bool) -> None:
        expected = case.tokenizer.decode(ids, skip_special_tokens=skip_special)
        assert case.table.decode(ids, True, 0, skip_special) == expected

    check()


@pytest.mark.parametrize("name", CASES)
def test_joined_releases_are_the_text(name: str) -> None:
    """Without stop strings ids leave in order, as soon as no later id can change their text; texts join."""
    case = CASES[name]

    @settings(max_examples=examples(300))
    @given(streams(case))
    def check(drawn: tuple[list[int], list[int], bool]) -> None:
        prompt, output, skip_special = drawn
        stream = Stream(case, prompt, skip_special_tokens=skip_special)
        for count, token in enumerate(output, start=1):
            assert stream.feed(token)
            num_ready = case.cuts(output[:count], skip_special)[-1]
            assert len(stream.ids) == num_ready
            assert stream.text == case.text(prompt, output[:num_ready], skip_special)
        stream.cancel()
        assert stream.ids == output
        assert stream.text == case.text(prompt, output, skip_special)

    check()


@pytest.mark.parametrize("name", CASES)
def test_stop_strings(name: str) -> None:
    """The first stop string ends the request, across tokens too; its start never leaves, no more waits."""
    case = CASES[name]

    @settings(max_examples=examples(600))
    @given(streams(case), st.randoms(use_true_random=False), st.booleans(), st.just(0) | st.integers(0, 8))
    def check(
        drawn: tuple[list[int], list[int], bool], rng: random.Random, include_stop: bool, min_tokens: int
    ) -> None:
        prompt, output, skip_special = drawn
        stops = pick_stops(rng, case.text(prompt, output, skip_special))
        if min_tokens > 0:
            # What a broken byte run's U+FFFD belonged to before it broke has no plain answer.
            stops = [stop for stop in stops if "\ufffd" not in stop] or ["a"]
        expected = naive_stop(case, prompt, output, stops, min_tokens, skip_special)
        stream = Stream(
            case,
            prompt,
            stop=stops,
            min_tokens=min_tokens,
            include_stop_str_in_output=include_stop,
            skip_special_tokens=skip_special,
        )
        for count, token in enumerate(output, start=1):
            goes_on = stream.feed(token)
            if not goes_on:
                break
            cuts = case.cuts(output[:count], skip_special)
            if cuts[-1] == count:
                text = case.text(prompt, output[:count], skip_special)
                safe = len(text) - hold_length(text, stops)
                ready = [n for n in cuts if len(case.text(prompt, output[:n], skip_special)) <= safe]
                assert len(stream.ids) == ready[-1]
        if expected is None:
            assert stream.finish_reason == ""
            stream.cancel()
            assert stream.ids == output
            assert stream.text == case.text(prompt, output, skip_special)
        else:
            count, begin, end = expected
            assert stream.finish_reason == "stop"
            assert stream.ids == output[:count]
            whole = case.text(prompt, output[:count], skip_special)
            assert stream.text == whole[: end if include_stop else begin]

    check()


@pytest.mark.parametrize("include_stop", [False, True])
def test_stop_token_ends_with_what_was_held(include_stop: bool) -> None:
    """A stop token releases the held ids; it carries text only when stops are included."""
    case = CASES["byte level"]
    stream = Stream(case, [65], stop=["xyz"], stop_token_ids=[66], include_stop_str_in_output=include_stop)
    x, y, unfinished = 120, 121, 0xE2
    assert stream.feed(x)
    assert stream.feed(y)
    assert stream.feed(unfinished)
    assert stream.ids == []
    assert not stream.feed(66)
    assert stream.ids == [x, y, unfinished, 66]
    assert stream.text == "xy\ufffd" + ("B" if include_stop else "")
    assert stream.finish_reason == "stop"


def test_text_at_the_start() -> None:
    """After a prompt without text, Strip drops one space of the output, Metaspace the first token's."""
    for name, tokens, expected in [
        ("byte fallback", ["▁", "▁a"], ["", " a"]),
        ("byte fallback", ["▁▁", "▁a"], [" ", " a"]),
        ("byte fallback", ["", "▁a", "▁a"], ["", "a", " a"]),
        ("metaspace", ["▁", "▁a"], ["", " a"]),
        ("metaspace", ["▁▁", "▁a"], ["", " a"]),
        ("metaspace", ["", "▁a"], ["", " a"]),
        ("metaspace", ["a▁b", "a▁b"], ["ab", "a b"]),
        ("joined", ["a", "b"], ["a", " b"]),
        ("joined", ["", "b"], ["", " b"]),
    ]:
        case = CASES[name]
        start = case.tokenizer.token_to_id("<s>")
        stream = Stream(case, [start])
        texts = []
        for token in tokens:
            before = stream.text
            stream.feed(case.tokenizer.token_to_id(token))
            texts.append(stream.text[len(before) :])
        assert texts == expected
        assert stream.text == case.text([start], stream.ids, True)
        after_text = Stream(case, [start], skip_special_tokens=False)
        after_text.feed(case.tokenizer.token_to_id("▁a" if name != "joined" else "a"))
        assert after_text.text == " a"


@settings(max_examples=examples(300))
@given(
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=5),
    st.text("ab", max_size=40),
    st.integers(1, 5),
)
@example(["aab", "ab"], "aaab", 1)
@example(["abab", "ba"], "abab", 4)
def test_stop_matcher(stops: list[str], text: str, piece: int) -> None:
    """The match complete first is found, however text is cut; hold_length is the longest proper prefix."""
    matcher = _core_parts.StopMatcher(stops)
    found = None
    for begin in range(0, len(text), piece):
        found = matcher.feed(text[begin : begin + piece].encode())
        if found:
            break
        assert matcher.hold_length == hold_length(text[: begin + piece], stops)
    assert found == first_stop(text, stops)


def test_stop_strings_cost_linear_work() -> None:
    """A stop string of many equal bytes is no worse than any other, nor are many ids that nearly match."""
    case = CASES["byte level"]
    gate = _core_parts.OutputGate(case.table, _core.SamplingParams(stop=["a" * 5000 + "b"]), False)
    released = 0
    for _ in range(200_000):
        assert not gate.push(97)
        released += gate.take_ready()[0]
    assert released == 195_000
    assert gate.push(98)
    assert gate.finish([97] * 5000 + [98]) == (5001, 5001, 5001, False)


@pytest.mark.parametrize("name", CASES)
def test_table_survives_serialization(name: str) -> None:
    """A table read back from bytes is the same; cut or changed bytes are refused, never misread."""
    table = CASES[name].table
    packed = table.serialize()
    again = _core.TokenTable.deserialize(packed)
    assert again.serialize() == packed
    assert (again.kind, again.separator, again.strip_left) == (table.kind, table.separator, table.strip_left)
    assert [(again.text(i), again.flags(i)) for i in range(len(table) + 1)] == [
        (table.text(i), table.flags(i)) for i in range(len(table) + 1)
    ]
    for size in [0, 3, 20, 27, 28, 40, len(packed) // 2, len(packed) - 1]:
        with pytest.raises(_core.InvalidArgument):
            _core.TokenTable.deserialize(packed[:size])
    with pytest.raises(_core.InvalidArgument, match="1 bytes too many"):
        _core.TokenTable.deserialize(packed + b"x")
    # kind, strip_left, and the sizes of the separator, the flags and the texts
    flags = 12 + len(table.separator)
    for offset in (0, 4, 8, flags, flags + 4 + len(table)):
        changed = bytearray(packed)
        changed[offset : offset + 4] = b"\xfe\xff\xff\x7f"
        with pytest.raises(_core.InvalidArgument):
            _core.TokenTable.deserialize(bytes(changed))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("flags", (_core.DecoderKind.JOINED, [b"a"], [])),
        ("flags[0]", (_core.DecoderKind.JOINED, [b"a"], [8])),
        ("flags[1]", (_core.DecoderKind.BYTE_LEVEL, [b"a", b"b"], [0, 2])),
        ("texts[0]", (_core.DecoderKind.BYTE_FALLBACK, [b"ab"], [2])),
        ("texts[0]", (_core.DecoderKind.BYTE_FALLBACK, [b"\xff"], [0])),
        ("texts[0]", (_core.DecoderKind.JOINED, [b"\xff"], [0])),
        ("separator", (_core.DecoderKind.BYTE_LEVEL, [b"a"], [0], " ")),
        ("strip_left", (_core.DecoderKind.BYTE_FALLBACK, [b"a"], [0], "", 2)),
        ("strip_left", (_core.DecoderKind.BYTE_FALLBACK, [b" ", b"a"], [2, 0], "", -1)),
        ("strip_left", (_core.DecoderKind.JOINED, [b"a"], [0], " ", 1)),
        ("flags", (_core.DecoderKind.WORD_PIECE, [b"a"], [0])),
        ("flags", (_core.DecoderKind.WORD_PIECE, [b"a", b"b", b"c"], [0, 0])),
        ("texts[0]", (_core.DecoderKind.WORD_PIECE, [b"a", b"\xff"], [0])),
        ("separator", (_core.DecoderKind.WORD_PIECE, [b"a", b"b"], [0], " ")),
        ("strip_left", (_core.DecoderKind.WORD_PIECE, [b"a", b"b"], [0], "", 1)),
    ],
)
def test_bad_table_is_refused(field: str, arguments: tuple[object, ...]) -> None:
    """A table that could not decode as promised is refused with the field's name."""
    with pytest.raises(_core.InvalidArgument) as error:
        _core.TokenTable(*arguments)
    assert error.value.field == field
