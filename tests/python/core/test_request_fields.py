"""Fields that change how a request is served: cache_salt, stream_interval."""

from __future__ import annotations

import numpy as np
import pytest
from core_helpers import Driver, make_core, word_table
from quire import _core


def test_prefixes_are_shared_among_requests_of_one_salt() -> None:
    """Not with requests of another salt or none, nor with tokens that look like one."""
    driver = Driver(make_core())
    prompt = list(range(12))
    salts = [("", 0), ("a", 0), ("", 8), ("a", 8), ("a\0", 0), ("aa", 0), ("a" * 16, 0), ("a" * 16, 8)]
    for request_id, (salt, cached) in enumerate(salts):
        driver.add(request_id, prompt, max_tokens=1, cache_salt=salt)
        driver.run()
        assert cached == driver.sequences[request_id].num_cached_tokens, salt
    # A prompt whose first block spells a salt: no request with that salt finds what stands behind it.
    driver.add(100, [1, 0, 0, 0, *prompt], max_tokens=1)
    driver.run()
    for salt in ("\1", "\1\0\0\0", "\1" + "\0" * 15):
        driver.add(101, prompt, max_tokens=1, cache_salt=salt)
        driver.run()
        assert driver.sequences.pop(101).num_cached_tokens == 0


@pytest.mark.parametrize("interval", [1, 2, 5, 100])
@pytest.mark.parametrize("stop", [[], ["w3"]])
def test_runs_wait_for_as_many_tokens_as_asked(interval: int, stop: list[str]) -> None:
    """The first leaves at once and the last whatever it has; the text is the same."""
    core = make_core(word_table(10), vocab_size=10)
    core.add_request(1, [9], _core.SamplingParams(max_tokens=13, stream_interval=interval, stop=stop))
    sizes, text = [], b""
    for token in [1, 2, 0, 4, 5, 6, 7, 8, 1, 2, 0, 4, 5]:
        core.schedule()
        for release in core.update(np.array([token], dtype=np.int32)).releases:
            sizes.append(len(release.token_ids))
            text += core.token_table.decode(release.token_ids, release.is_first, release.trim).encode()
    assert text.decode() == " w1 w2 w0 w4 w5 w6 w7 w8 w1 w2 w0 w4 w5"
    assert sizes[0] == 1
    assert sum(sizes) == 13
    assert all(size == interval for size in sizes[1:-1]), sizes
    assert release.finish_reason == "length"
