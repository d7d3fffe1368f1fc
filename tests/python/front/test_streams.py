"""However a stream is cut, its texts joined are what `tokenizers` decodes at once, in every script."""

from __future__ import annotations

import codecs
import json
import random
import re

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quire import _core
from quire.errors import UnsupportedModel
from quire.tokenizer import SUPPORTED_DECODERS, build_table
from stream_tokenizers import MAKERS, TEXTS, word_level
from tokenizers import Regex, Tokenizer, decoders

MAX_LENGTH = 512
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
TABLES = {name: build_table(tokenizer) for name, tokenizer in TOKENIZERS.items()}
ENCODED = {name: [made.encode(text).ids for text in TEXTS] for name, made in TOKENIZERS.items()}
BYTE_FALLBACK = {name for name, made in TOKENIZERS.items() if "ByteFallback" in made.to_str()}
by_name = pytest.mark.parametrize("name", list(TOKENIZERS))
thorough = settings(max_examples=examples(250), suppress_health_check=[HealthCheck.too_slow])


def text_of(name: str, prompt: list[int], output: list[int], skip: bool) -> str:
    """decode(prompt + output) minus decode(prompt). When the output completes a character that the prompt
    began, or breaks what were characters so far, decode(prompt) is no prefix: then minus what the prompt
    holds of it, where the character that was completed is the output's."""
    tokenizer = TOKENIZERS[name]
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    whole = tokenizer.decode(prompt + output, skip_special_tokens=skip)
    run = byte_run(name, prompt, skip)
    # All text of the prompt may be the one space that the decoder strips, and the output break its run.
    is_broken_space = before == "" and run == b" " and whole.startswith("\ufffd\ufffd")
    if whole.startswith(before) and not is_broken_space:
        return whole[len(before) :]
    if not run:  # a byte level tokenizer
        assert before.endswith("\ufffd")
        assert whole.startswith(before[:-1])
        return whole[len(before) - 1 :]
    try:
        size = len(run.decode())
        held = before[: max(len(before) - size, 0)] + "\ufffd" * len(run)  # broken by the output
    except UnicodeDecodeError:
        complete = codecs.getincrementaldecoder("utf-8")().decode(run)
        held = before[: max(len(before) - len(run), 0)] + complete
    if not whole.startswith(held):
        held = held.removeprefix(" ")  # the decoder strips it
    assert whole.startswith(held)
    return whole[len(held) :]


def byte_run(name: str, ids: list[int], skip: bool) -> bytes:
    """The byte tokens at the end of ids."""
    tokenizer = TOKENIZERS[name]
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens = [tokenizer.id_to_token(i) or "" for i in ids if not (skip and i in special)]
    tokens = [token for token in tokens if token]  # some ids have none
    run = b""
    while tokens and re.fullmatch("<0x[0-9A-F]{2}>", tokens[-1]):
        run = bytes([int(tokens.pop()[3:5], 16)]) + run
    return run if name in BYTE_FALLBACK else b""


class Stream:
    """Given ids through an EngineCore; keeps the releases."""

    def __init__(self, name: str, prompt: list[int], **params: object) -> None:
        self.table = TABLES[name]
        self.params = _core.SamplingParams(**params)
        config = _core.EngineConfig(
            num_blocks=64,
            block_size=16,
            max_model_len=MAX_LENGTH,
            max_num_seqs=1,
            max_num_batched_tokens=MAX_LENGTH,
            vocab_size=len(self.table) + 2,
        )
        self.core = _core.EngineCore(config, self.table)
        self.core.add_request(1, prompt, self.params)
        self.releases: list[_core.Release] = []

    def feed(self, token: int) -> bool:
        """Whether the request goes on."""
        self.core.schedule()
        self.releases += self.core.update(np.array([token], dtype=np.int32)).releases
        return not (self.releases and self.releases[-1].finish_reason)

    def cancel(self) -> None:
        self.core.cancel(1)
        self.releases += self.core.take_outputs().releases

    @property
    def ids(self) -> list[int]:
        return [token for release in self.releases for token in release.token_ids]

    def text(self, rng: random.Random | None = None) -> str:
        """The releases' texts joined. `rng`: neighbours are merged at random first, as for a slow client."""
        groups: list[list[_core.Release]] = []
        for release in self.releases:
            if groups and rng and rng.random() < 0.5:
                groups[-1].append(release)
            else:
                groups.append([release])
        return "".join(self.decode(group) for group in groups)

    def decode(self, group: list[_core.Release]) -> str:
        ids = [token for release in group for token in release.token_ids]
        num_textless = len(group[-1].token_ids) - group[-1].num_text_ids
        skip = self.params.skip_special_tokens
        first, last = group[0], group[-1]
        text_ids = ids[: len(ids) - num_textless]
        return self.table.decode(text_ids, first.is_first, last.trim, skip, first.open_text)


@st.composite
def streams(draw: st.DrawFn, name: str) -> tuple[list[int], list[int]]:
    """Prompt and output: a real text cut anywhere, also inside a character; or any ids; or a text with any
    ids strewn in."""
    any_id = st.integers(0, len(TABLES[name]) + 1)
    ids = draw(st.lists(any_id, max_size=12))
    if draw(st.integers(0, 3)) > 0:
        first = draw(st.sampled_from(ENCODED[name]))
        begin = draw(st.integers(0, max(len(first) - 1, 0)))
        place = draw(st.integers(0, len(ids)))
        ids = (
            ids[:place] * draw(st.booleans()) + first[begin : begin + 60] + ids[place:] * draw(st.booleans())
        )
    ids += draw(st.lists(any_id, min_size=max(2 - len(ids), 0), max_size=3))
    # Often where the prompt ends is what matters: anywhere.
    cut = draw(st.integers(1, len(ids) - 1))
    return ids[:cut], ids[cut:]


@by_name
@given(data=st.data(), skip=st.booleans(), rng=st.randoms(use_true_random=False))
@thorough
def test_joined_texts_are_the_one_shot_decode(
    name: str, data: st.DataObject, skip: bool, rng: random.Random
) -> None:
    """After each release and at the end, behind any prompt; every id leaves once, in order."""
    prompt, output = data.draw(streams(name))
    stream = Stream(name, prompt, skip_special_tokens=skip)
    for token in output:
        num_before = len(stream.releases)
        assert stream.feed(token)
        if len(stream.releases) > num_before:
            assert stream.ids == output[: len(stream.ids)]
            assert stream.text() == text_of(name, prompt, stream.ids, skip)
    stream.cancel()
    assert stream.ids == output
    assert stream.text() == stream.text(rng) == text_of(name, prompt, output, skip)


def pick_stops(rng: random.Random, text: str) -> list[str]:
    """Stop strings of 1 to 40 characters: parts of the text, some with another end, and foreign ones. A
    U+FFFD is in none: which bytes it stands for may change with the next byte."""
    stops = []
    for _ in range(rng.randrange(1, 5)):
        begin = rng.randrange(len(text) + 1)
        stop = text[begin : begin + rng.choice([1, 2, 3, 5, 8, 40])]
        if rng.random() < 0.4:
            stop += rng.choice(["\u0301", "a", " ", "。", "👍", "ि", "ß"])
        stops.append(stop)
    return [stop for stop in stops if stop and "\ufffd" not in stop] or ["\u0301x"]


@by_name
@given(data=st.data(), skip=st.booleans(), include=st.booleans(), rng=st.randoms(use_true_random=False))
@thorough
def test_a_stop_string_cuts_exactly(
    name: str, data: st.DataObject, skip: bool, include: bool, rng: random.Random
) -> None:
    """The stream ends with the id that completes a stop string, and its text before or behind it."""
    prompt, output = data.draw(streams(name))
    stops = pick_stops(rng, text_of(name, prompt, output, skip))
    expected_ids, expected = output, text_of(name, prompt, output, skip)
    for count in range(1, len(output) + 1):
        text = text_of(name, prompt, output[:count], skip)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        if found:
            end, begin = min(found)  # the one complete first, of those the longest
            expected_ids, expected = output[:count], text[: end if include else begin]
            break
    stream = Stream(name, prompt, stop=stops, skip_special_tokens=skip, include_stop_str_in_output=include)
    for token in output:
        if not stream.feed(token):
            assert stream.releases[-1].finish_reason == "stop"
            break
        # Nothing has left that a stop string could still take back.
        assert expected.startswith(stream.text()) or include or len(stream.ids) <= len(expected_ids)
    else:
        stream.cancel()
    assert stream.ids == expected_ids
    assert stream.text() == stream.text(rng) == expected


@by_name
def test_every_cut_of_every_text(name: str) -> None:
    """Each sample text, cut into prompt and output at each id: the prompt's text and the output's are the
    text, and where the prompt ends inside a character, the character is the output's."""
    table, tokenizer = TABLES[name], TOKENIZERS[name]
    for ids in ENCODED[name]:
        whole = tokenizer.decode(ids)
        for cut in range(1, len(ids)):
            stream = Stream(name, ids[:cut])
            for token in ids[cut:]:
                stream.feed(token)
            stream.cancel()
            text = stream.text()
            assert text == text_of(name, ids[:cut], ids[cut:], True)
            assert whole.endswith(text)
            if table.kind == _core.DecoderKind.BYTE_LEVEL and "\ufffd" not in whole:
                prompt = tokenizer.decode(ids[:cut])
                assert prompt.removesuffix("\ufffd") + text == whole


SUPPORTED = {
    "ByteFallback": [decoders.ByteFallback()],
    "ByteLevel": [decoders.ByteLevel()],
    "Fuse": [decoders.Fuse()],
    "Metaspace": [decoders.Metaspace(), decoders.Metaspace(replacement="_", prepend_scheme="never")],
    "Replace": [decoders.Replace("a", "b")],
    "Sequence": [decoders.Sequence([]), decoders.Sequence([decoders.Sequence([decoders.WordPiece()])])],
    "WordPiece": [decoders.WordPiece(), decoders.WordPiece(prefix="", cleanup=False)],
}
REFUSED = {
    "BPEDecoder": [decoders.BPEDecoder()],  # a token's text depends on whether it is the last one
    "CTC": [decoders.CTC()],  # drops repetitions
    "Strip": [decoders.Strip(" ", 1, 0), decoders.Sequence([decoders.Fuse(), decoders.Strip("a", 1, 1)])],
    "Replace": [
        decoders.Replace(Regex("a+"), "b"),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
    ],
    "WordPiece": [decoders.Sequence([decoders.WordPiece(), decoders.Replace("a", "b")])],
    "ByteLevel": [decoders.Sequence([decoders.Replace("a", "b"), decoders.ByteLevel()])],
    "Metaspace": [decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])],
}


def test_every_decoder_is_exact_or_refused() -> None:
    """The lists below leave out no decoder that `tokenizers` has."""
    known = {
        name
        for name, kind in vars(decoders).items()
        if isinstance(kind, type) and issubclass(kind, decoders.Decoder) and kind is not decoders.Decoder
    }
    assert known == {*SUPPORTED, *REFUSED}


@pytest.mark.parametrize(("kind", "decoder"), [(kind, one) for kind, some in REFUSED.items() for one in some])
def test_an_inexact_decoder_is_refused_by_name(kind: str, decoder: decoders.Decoder) -> None:
    """The error names the decoder that was found, and those that are allowed."""
    tokenizer = word_level()
    tokenizer.decoder = decoder
    with pytest.raises(UnsupportedModel, match=r"^decoder: got ") as error:
        build_table(tokenizer)
    assert kind in str(error.value)
    assert str(error.value).endswith(f"; allowed: {SUPPORTED_DECODERS}")


@pytest.mark.parametrize(
    ("kind", "decoder"), [(kind, one) for kind, some in SUPPORTED.items() for one in some]
)
def test_a_supported_decoder_is_exact(kind: str, decoder: decoders.Decoder) -> None:
    """On a vocabulary that was made for another one, and for each of its tokens in each place."""
    rng = random.Random(f"seed {kind}")
    for name in ("BPE with byte fallback, as Llama 2", "WordPiece, German and Turkish"):
        tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
        if kind == "Metaspace" and " " in "".join(tokenizer.get_vocab()):
            continue  # refused, see test_tokenizer
        tokenizer.decoder = decoder
        assert json.loads(tokenizer.to_str())["decoder"]["type"] == kind
        table = build_table(tokenizer)
        for _ in range(2000):
            ids = rng.choices(range(len(table) + 2), k=rng.randrange(1, 8))
            for skip in (True, False):
                expected = tokenizer.decode(ids, skip_special_tokens=skip)
                assert table.decode(ids, skip_special_tokens=skip) == expected
