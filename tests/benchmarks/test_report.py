"""The table of committed results, and the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import plot
import pytest
import report
from workload import Case, case_key


def row(conc: int, rate: float, **more: float) -> dict[str, Any]:
    return {
        "tag": "x",
        **case_key(Case(512, 256, conc, 2 * conc, 0)),
        "out_tok_s": rate,
        "ttft_p50_ms": 10.04,
        "itl_p50_ms": 5.006,
        **more,
    }


def run(date: str, card: str = "H100", shape: str = "8b", **sides: list[dict[str, Any]]) -> dict[str, Any]:
    versions = {"versions": {"vllm": "0.24.0", "torch": "2.11.0"}}
    return {
        "date": f"2026-11-{date}T01:02:03+00:00",
        "shape": shape,
        "machine": {"card": card, "driver": "580.1"},
        "sides": {name: {"rows": rows, **versions} for name, rows in sides.items()},
    }


def test_pairs_are_of_one_call() -> None:
    """A row counts when both sides ran it in one call; of several calls the newest; never across calls,
    cards or shapes."""
    runs = [
        run("01", vllm=[row(1, 100), row(8, 200)], quire=[row(1, 110), row(8, 210)]),
        run("02", vllm=[row(8, 300)], quire=[row(8, 390), row(32, 500)]),
        run("03", vllm=[row(1, 1)], quire=[]),
        run("03", quire=[row(1, 2)]),
        run("04", card="H200", vllm=[row(1, 100)], quire=[row(1, 150)]),
        run("04", shape="1b", vllm=[row(1, 100)], quire=[row(1, 170)]),
    ]
    found = [
        (p.card, p.shape, p.quire["conc"], p.run["date"][8:10], p.ratio) for p in report.newest_pairs(runs)
    ]
    assert [
        ("H100", "8b", 1, "01", 1.1),
        ("H100", "8b", 8, "02", 1.3),
        ("H200", "8b", 1, "04", 1.5),
        ("H100", "1b", 1, "04", 1.7),
    ] == found


def test_table() -> None:
    """One line per pair; the share through Triton may come from another call."""
    runs = [
        run("01", vllm=[row(256, 8939.2)], quire=[row(256, 10950.4, ttft_p50_ms=9, itl_p50_ms=4.004)]),
        run("02", quire=[row(256, 10000)], serve=[row(256, 9700, of_engine=0.97)]),
    ]
    lines = report.markdown(runs).splitlines()
    assert lines[0].startswith("H100, driver 580.1, 2026-11-01; vLLM 0.24.0, torch 2.11.0.")
    assert lines[-1] == (
        "| 8B | 512/256 | 256 | 8,939 | 10,950 | **1.22** | 10.0 → 9.0 | 5.01 → 4.00 | 97% |"
    )
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")


def test_an_impossible_share_is_refused(tmp_path: Path) -> None:
    """No table is made of a row that is faster through Triton than the engine alone."""
    results = tmp_path / "results.json"
    results.write_text(
        json.dumps({"runs": [run("01", quire=[row(8, 1)], serve=[row(8, 2, of_engine=1.83)])]})
    )
    with pytest.raises(ValueError, match=r"512/256 conc. 8 .*of_engine: got 1\.83"):
        report.load_runs(results)


def test_rows_and_summary_of_the_readme() -> None:
    """The README's rows are those of CHOSEN, in its order; the sentence counts every case."""
    case = {"prompt": 2048, "out": 128}
    runs = [
        run("01", vllm=[row(64, 100), row(1, 100)], quire=[row(64, 110), row(1, 120)]),
        run("02", vllm=[row(64, 100) | case], quire=[row(64, 90) | case]),
        run("02", shape="1b", vllm=[row(1, 100)], quire=[row(1, 200)]),
    ]
    rows = report.chosen_rows(runs).splitlines()[4:]
    assert [line.split(" | ")[:3] for line in rows] == [
        ["| 8B", "512/256", "1"],
        ["| 8B", "512/256", "64"],
        ["| 1B", "512/256", "1"],
    ]
    assert report.summary(runs) == (
        "- **Fast.** 0.90 to 1.20 times vLLM's tokens per second with 8B, 2.00 times with 1B;"
        " ahead in 3 of 4 cases on one H100.\n"
    )


def test_without_results(tmp_path: Path) -> None:
    """No file: every text says so. No marks: an error."""
    runs = report.load_runs(tmp_path / "none.json")
    assert [report.NOTHING + "\n"] * 3 == [
        make(runs) for make in (report.markdown, report.chosen_rows, report.summary)
    ]
    with pytest.raises(ValueError, match="begin"):
        report.with_part("text", "rows", "table")
    begin, end = (
        mark.format(source="benchmarks/report.py", name="rows") for mark in (report.BEGIN, report.END)
    )
    assert f"a\n{begin}\nnew\n{end}\nb\n" == report.with_part(f"a\n{begin}\nold\n{end}\nb\n", "rows", "new\n")


def test_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SVG per shape from the sweep over concurrency, the same bytes each time."""
    rows = [[row(conc, factor * conc) for conc in (8, 1)] for factor in (10, 12)]
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": [run("01", vllm=rows[0], quire=rows[1])]}))
    pairs = report.newest_pairs(report.load_runs(results))
    assert ([1, 8], [12, 96]) == plot.series(pairs, "Quire", "out_tok_s")
    assert ([1, 8], [10, 80]) == plot.series(pairs, "vLLM", "out_tok_s")
    made = []
    for name in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["plot.py", str(results), "--folder", str(tmp_path / name)])
        plot.main()
        assert ["8b.svg"] == [path.name for path in (tmp_path / name).iterdir()]
        made.append((tmp_path / name / "8b.svg").read_bytes())
    assert made[0] == made[1]
    assert b"concurrent requests" in made[0]
