"""Logprobs that become dicts where they are read: what a tuple of dicts would say."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from quire import _core
from quire.token_logprobs import Logprob, OutputLogprobs, PromptLogprobs

ENTRY = np.dtype([("token_id", np.int32), ("logprob", np.float32), ("rank", np.int32)])
# The second token is among its likeliest; the third has fewer likeliest ones than were asked for.
ENTRIES = np.array(
    [
        [(1, -0.5, 1), (1, -0.5, 1), (2, -1.5, 2)],
        [(3, -4.0, 9), (0, -0.25, 1), (4, -2.0, 2)],
        [(2, 0.0, 1), (2, 0.0, 1), (-1, 0.0, 0)],
    ],
    ENTRY,
)
PLACES = (
    {1: Logprob(-0.5, 1, "b"), 2: Logprob(-1.5, 2, "c")},
    {3: Logprob(-4.0, 9, "d"), 0: Logprob(-0.25, 1, "a"), 4: Logprob(-2.0, 2, "e")},
    {2: Logprob(0.0, 1, "c")},
)


@pytest.fixture(scope="module")
def table() -> _core.TokenTable:
    return _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, [bytes([97 + i]) for i in range(5)], [0] * 5)


def test_of_output(table: _core.TokenTable) -> None:
    """Read by index, slice and iteration; the token that stands there comes first."""
    logprobs = OutputLogprobs(ENTRIES, table)
    assert len(logprobs) == 3
    assert tuple(logprobs) == PLACES
    assert logprobs[-1] == PLACES[-1]
    assert [list(place) for place in logprobs] == [[1, 2], [3, 0, 4], [2]]
    assert logprobs[1:] == PLACES[1:]
    assert logprobs[::-1] == PLACES[::-1]
    with pytest.raises(IndexError):
        logprobs[3]
    with pytest.raises(TypeError):
        logprobs["0"]  # type: ignore[call-overload]


def test_of_prompt(table: _core.TokenTable) -> None:
    """Nothing predicts the first token, also where it is the only one."""
    logprobs = PromptLogprobs(ENTRIES, table)
    assert tuple(logprobs) == (None, *PLACES)
    assert (logprobs[0], logprobs[3], logprobs[-4]) == (None, PLACES[2], None)
    assert logprobs[:2] == (None, PLACES[0])
    assert tuple(PromptLogprobs(ENTRIES[:0], table)) == (None,)


def test_of_several_releases(table: _core.TokenTable) -> None:
    """In their order, those without ids among them."""
    parts = [ENTRIES[:0], ENTRIES[:2], ENTRIES[:0], ENTRIES[2:]]
    assert OutputLogprobs.joined(parts, table) == PLACES
    assert len(OutputLogprobs.joined(parts[:1], table)) == 0


def test_equality(table: _core.TokenTable) -> None:
    """By the elements, with any sequence."""
    logprobs = OutputLogprobs(ENTRIES, table)
    assert logprobs == OutputLogprobs(ENTRIES.copy(), table)
    assert logprobs == PLACES
    assert logprobs == list(PLACES)
    assert logprobs != PLACES[:2]
    assert logprobs != PromptLogprobs(ENTRIES, table)
    assert logprobs != 3


def test_copies_need_no_engine(table: _core.TokenTable) -> None:
    """Pickled (to another process, say) and deep-copied ones are tuples of the same."""
    for logprobs in (OutputLogprobs(ENTRIES, table), PromptLogprobs(ENTRIES, table)):
        for twin in (pickle.loads(pickle.dumps(logprobs)), copy.deepcopy(logprobs)):
            assert type(twin) is tuple
            assert logprobs == twin
        assert repr(logprobs) == repr(tuple(logprobs))
