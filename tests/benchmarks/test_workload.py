"""The load: the table of cases, the prompts that both engines get, the figures of a row."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from workload import (
    Case,
    Record,
    case_key,
    check_complete,
    choose_rows,
    figures,
    load_cases,
    percentile,
    prompts,
    same_case,
    warm_up,
)

# The rows that vLLM was measured with, as prompt, output, concurrency, requests, shared prefix.
SWEEP = {"8b": (2, 16, 64, 128, 256, 512), "1b": (3, 16, 96, 192, 384, 768)}
OTHERS = {
    "8b": [(2048, 128, 32, 64, 0), (128, 1024, 64, 64, 0), (8192, 64, 8, 16, 0), (1600, 128, 64, 128, 1536)],
    "1b": [(2048, 128, 64, 192, 0), (128, 1024, 128, 128, 0), (1600, 128, 64, 256, 1536)],
}


@pytest.mark.parametrize("shape", ["8b", "1b"])
def test_cases(shape: str) -> None:
    """The committed table: short, a sweep over concurrency, long prompts, long answers, a shared prefix."""
    sweep = zip((1, 8, 32, 64, 128, 256), SWEEP[shape], strict=True)
    expected = [Case(128, 128, 1, 3, 0), *(Case(512, 256, n, requests, 0) for n, requests in sweep)]
    assert [*expected, *(Case(*row) for row in OTHERS[shape])] == load_cases(shape)
    assert Case(512, 64, 32, 64, 0) == warm_up(shape)


@pytest.mark.parametrize("shape", ["8b-fp8", "8b-int4", "8b-fp8kv"])
def test_formats_have_the_rows_of_their_shape(shape: str) -> None:
    """A shape in another format is measured with the same rows."""
    assert load_cases("8b") == load_cases(shape)


def test_cases_of_another_file(tmp_path: Path) -> None:
    """A table with other columns or without the shape is refused."""
    columns = ["prompt_tokens", "output_tokens", "concurrency", "requests", "shared_prefix_tokens"]
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"columns": columns, "1b": [[8, 4, 2, 3, 0]]}))
    assert [Case(8, 4, 2, 3, 0)] == load_cases("1b", file)
    with pytest.raises(ValueError, match=r"got the shape '8b'; allowed: \['1b'\]"):
        load_cases("8b", file)
    file.write_text(json.dumps({"columns": columns[1:], "1b": []}))
    with pytest.raises(ValueError, match="columns: got"):
        load_cases("1b", file)


def test_prompts_are_those_of_the_baselines() -> None:
    """The recipe is random.Random(31 prompt + 7 output + concurrency), first the shared prefix, then each
    prompt's rest: literal ids, since figures measured elsewhere rest on them."""
    made = prompts(Case(128, 128, 1, 3, 0))
    assert [128] * 3 == [len(ids) for ids in made]
    assert [[6900, 10762, 89806], [107720, 55785, 41877], [110836, 45557, 67104]] == [ids[:3] for ids in made]
    assert [[115127, 1295], [87037, 107155], [14889, 35661]] == [ids[-2:] for ids in made]
    first, second = prompts(Case(1600, 128, 64, 2, 1536))
    assert [88214, 70519, 93558, 96725] == first[:4]
    assert first[:1536] == second[:1536]
    assert ([12151, 12723], [102197, 107754]) == (first[1536:1538], second[1536:1538])
    assert ([87452, 6737], [497, 5270]) == (first[-2:], second[-2:])


def test_prompts_stay_in_a_small_vocabulary() -> None:
    """Ids are in [10, max_id)."""
    ids = [token for prompt in prompts(Case(50, 1, 1, 20, 10), max_id=12) for token in prompt]
    assert {10, 11} == set(ids)


def test_percentile() -> None:
    """The value at rank floor(p n / 100), the last at most."""
    values = [float(value) for value in range(200, 0, -1)]
    assert [1.0, 101.0, 199.0, 200.0] == [percentile(values, p) for p in (0, 50, 99, 100)]
    assert 7.0 == percentile([7.0], 99)
    assert math.isnan(percentile([], 50))


def test_figures() -> None:
    """A gap is the time since the last answer per token of this one; rates are over the whole case."""
    one, two = Record(1.0), Record(2.0)
    for now, num_new in ((1.1, 1), (1.3, 2), (1.4, 0), (1.5, 1)):
        one.add(now, num_new)
    for now, num_new in ((2.5, 3), (2.6, 1)):
        two.add(now, num_new)
    case = Case(10, 4, 2, 2, 6)
    check_complete(case, [one, two])
    row = figures("x", case, 2.0, [one, two])
    assert {
        "tag": "x",
        "prompt": 10,
        "out": 4,
        "conc": 2,
        "nreq": 2,
        "shared": 6,
        "s": 2.0,
        "out_tok_s": 4.0,
        "tot_tok_s": 14.0,
        "ttft_p50_ms": 500.0,
        "ttft_p99_ms": 500.0,
        "itl_p50_ms": 100.0,
        "itl_p99_ms": 100.0,
    } == row
    assert same_case(row, case_key(case))
    assert not same_case(row, case_key(Case(10, 4, 3, 2, 6)))
    with pytest.raises(RuntimeError, match=r"10/4, 6 shared, conc\. 2: 1 of 2 requests"):
        check_complete(case, [one])
    two.add(2.7, 1)
    with pytest.raises(RuntimeError, match=r"1 of them with other than 4 tokens, such as \[5\]"):
        check_complete(case, [one, two])


def test_choose_rows() -> None:
    """Rows by their place; a place outside is named."""
    cases = load_cases("1b")
    assert cases == choose_rows(cases, None)
    assert [cases[6], cases[0]] == choose_rows(cases, [6, 0])
    with pytest.raises(ValueError, match=r"--rows: got 10; allowed: 0 to 9"):
        choose_rows(cases, [10])
