"""The programs: the engine alone, vLLM's twin (on a stand-in for vLLM), through Triton, side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bench_engine
import bench_serve
import pytest
import quire_options
import report
import side_by_side
import word_model
from processes import is_alive
from quire import LLM
from quire.errors import ServerError
from quire.triton.server import TritonServer
from workload import Case, case_key, prompts

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
COLUMNS = ["prompt_tokens", "output_tokens", "concurrency", "requests", "shared_prefix_tokens"]
# What vLLM's and our own rows have in common; comparisons rest on it.
KEYS = ["tag", "prompt", "out", "conc", "nreq", "shared", "s", "out_tok_s", "tot_tok_s"]
KEYS += ["ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms"]
TINY = [[12, 3, 1, 2, 0], [20, 4, 3, 7, 16]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cases") / "cases.json"
    file.write_text(json.dumps({"columns": COLUMNS, **dict.fromkeys(("quire-8m", "1b"), TINY)}))
    return file


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=os.environ | environment
    )


def quire(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", "from quire.cli import app; app()", *arguments)


def rows_of(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert 0 == result.returncode, result.stdout + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_bench_responses() -> None:
    """The path of responses, with a stand-in for the model, loses nothing."""
    result = quire("bench", "responses", "--streams", "8", "--seconds", "0.2")
    assert 0 == result.returncode, result.stdout + result.stderr
    assert "lost or double ids              0" in result.stdout


def test_bench_streams(tmp_path: Path) -> None:
    """One row for each number of streams and size of body; every stream is whole."""
    file = tmp_path / "rows.json"
    options = ["--streams", "4", "9", "--megabytes", "1", "--tokens", "12", "--json", str(file)]
    rows = rows_of(quire("bench", "streams", *options))
    assert rows == json.loads(file.read_text())
    assert [(4, 1), (9, 1)] == [(row["streams"], row["megabytes"]) for row in rows]
    for row in rows:
        assert (0, 0, 0, 0) == (row["short"], row["errors"], row["not_ended"], row["tokens_lost"])
        assert (True, 12) == (row["guard"], row["tokens"])


def test_bench_engine(cases: Path, tmp_path: Path) -> None:
    """One row per case with vLLM's keys, on the terminal and in the file; settings reach the engine."""
    file = tmp_path / "rows.json"
    options = ["--cases", str(cases), "--json", str(file), "--settings", "max_num_seqs=2", "dtype=float32"]
    rows = rows_of(quire("bench", "engine", *options))
    assert rows == json.loads(file.read_text())
    assert ["startup", "warm-up", "quire-8m", "quire-8m"] == [row["tag"] for row in rows]
    assert {"max_num_seqs": 2, "dtype": "float32"} == rows[0]["settings"]
    for case, row in zip(TINY, rows[2:], strict=True):
        assert list(row) == KEYS
        assert case_key(Case(*case)).items() <= row.items()
        assert row["out_tok_s"] > 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"]
        assert 0 < row["itl_p50_ms"] <= row["itl_p99_ms"]


def test_bench_engine_computes_its_prompts_again() -> None:
    """A case that runs again finds nothing in the prefix cache but the prefix that it shares on purpose."""
    llm = LLM("quire-8m")
    for _ in range(2):
        bench_engine.run_case(llm, "x", Case(100, 2, 2, 4, 0), 600)
    assert 0 == llm.stats().prefix_cache_hits
    bench_engine.run_case(llm, "x", Case(100, 2, 1, 4, 64), 600)
    assert 3 * 64 == llm.stats().prefix_cache_hits


def test_bench_engine_chooses_rows(cases: Path) -> None:
    """--rows are places in the table."""
    rows = rows_of(quire("bench", "engine", "--cases", str(cases), "--rows", "1"))
    assert [20] == [row["prompt"] for row in rows[2:]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--settings", "max_num_seq=2"], 'did you mean "max_num_seqs"?'),
        (["--settings", "max_num_seqs"], "got 'max_num_seqs'; allowed: KEY=VALUE"),
        (["--rows", "3"], "--rows: got 3; allowed: 0 to 2"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    """A mistake is one line and status 1."""
    result = quire("bench", "engine", *arguments)
    assert 1 == result.returncode
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_settings_of_a_shape_without_weights(tmp_path: Path) -> None:
    """Shapes are compared with vLLM's settings and random weights; what is given wins."""
    settings = quire_options.settings_of("8b", ["max_num_seqs=64"], tmp_path)
    assert {"max_model_len": 16384, "max_num_seqs": 64, "load_format": "dummy"}.items() <= settings.items()


FAKE_VLLM = {
    "__init__.py": """
__version__ = "0.0"
class SamplingParams:
    def __init__(self, **values):
        self.__dict__.update(values)
""",
    "engine/arg_utils.py": """
class AsyncEngineArgs:
    def __init__(self, **values):
        self.values = values
""",
    "sampling_params.py": "class RequestOutputKind:\n    DELTA = 'delta'\n",
    "v1/engine/async_llm.py": """
import asyncio, json, os
from types import SimpleNamespace
class AsyncLLM:
    @classmethod
    def from_engine_args(cls, args):
        return cls()
    async def generate(self, prompt, params, request_id):
        with open(os.environ["SEEN"], "a") as file:
            print(json.dumps([prompt["prompt_token_ids"], prompt["cache_salt"], params.__dict__]), file=file)
        for token in range(params.max_tokens):
            await asyncio.sleep(0.001)
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[token])])
    def shutdown(self):
        pass
""",
}


@pytest.fixture(scope="module")
def fake_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with the few names that vllm_engine.py uses."""
    folder = tmp_path_factory.mktemp("fake")
    for name, text in FAKE_VLLM.items():
        file = folder / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_vllm_gets_the_same_load(cases: Path, fake_vllm: Path, tmp_path: Path) -> None:
    """Rows with the same keys; vLLM is asked for our prompts, greedy, for exactly the row's tokens."""
    seen = tmp_path / "seen"
    command = [sys.executable, str(BENCHMARKS / "vllm_engine.py"), "model", "--shape", "1b"]
    rows = rows_of(run(*command, "--cases", str(cases), PYTHONPATH=str(fake_vllm), SEEN=str(seen)))
    assert ["startup", "warm-up", "vllm-1b", "vllm-1b"] == [row["tag"] for row in rows]
    for case, row in zip(TINY, rows[2:], strict=True):
        assert list(row) == KEYS
        assert case_key(Case(*case)).items() <= row.items()
    requests = [json.loads(line) for line in seen.read_text().splitlines()][64:]
    assert [ids for case in TINY for ids in prompts(Case(*case))] == [ids for ids, _, _ in requests]
    for (_, _, params), tokens in zip(requests, [3] * 2 + [4] * 7, strict=True):
        assert (tokens, tokens, 0.0, True) == (
            params["max_tokens"],
            params["min_tokens"],
            params["temperature"],
            params["ignore_eos"],
        )


def test_vllm_finds_no_prompt_of_an_earlier_row(cases: Path, fake_vllm: Path, tmp_path: Path) -> None:
    """The requests of a row share one cache salt, which no other row has, the same case again neither."""
    seen = tmp_path / "seen"
    command = [
        sys.executable,
        str(BENCHMARKS / "vllm_engine.py"),
        "model",
        "--shape",
        "1b",
        "--rows",
        "1",
        "1",
    ]
    rows_of(run(*command, "--cases", str(cases), PYTHONPATH=str(fake_vllm), SEEN=str(seen)))
    salts = [salt for _, salt, _ in (json.loads(line) for line in seen.read_text().splitlines())]
    runs = [set(salts[:64]), set(salts[64:71]), set(salts[71:])]
    assert [1, 1, 1] == [len(of_run) for of_run in runs]
    assert 3 == len(set.union(*runs))


def test_side_by_side(cases: Path, fake_vllm: Path, tmp_path: Path) -> None:
    """Both sides run and are compared row by row; a later call adds to the file; a table ends it."""
    results, model = tmp_path / "results.json", word_model.make("quire-8m", tmp_path / "model")
    command = [sys.executable, str(BENCHMARKS / "side_by_side.py"), str(results), "--shapes", "1b"]
    command += ["--model", str(model), "--cases", str(cases), "--commit", "abc"]
    command += ["--vllm-path", str(fake_vllm), "--quire-settings", "max_model_len=1024"]
    for rows in (["0"], ["1", "0"]):
        result = run(*command, "--rows", *rows, SEEN=str(tmp_path / "seen"))
        assert 0 == result.returncode, result.stdout + result.stderr
        assert len(rows) == result.stdout.count("quire / vllm")
    runs = json.loads(results.read_text())["runs"]
    for entry, prompts_of_rows in zip(runs, ([12], [20, 12]), strict=True):
        assert ("1b", "abc", ["vllm", "quire"]) == (entry["shape"], entry["commit"], list(entry["sides"]))
        for side in entry["sides"].values():
            assert prompts_of_rows == [row["prompt"] for row in side["rows"]]
            assert {"startup_s", "versions", "settings", "date"} <= set(side)
    assert result.stdout.endswith(report.markdown(runs))
    assert {"vllm-1b.log", "quire-1b.log"} <= {path.name for path in tmp_path.iterdir()}


def test_ratio_line() -> None:
    """Ratios are above 1 where Quire is better."""
    case = case_key(Case(512, 256, 8, 16, 0))
    vllm = {"out_tok_s": 100.0, "ttft_p50_ms": 20.0, "itl_p50_ms": 6.0, **case}
    ours = {"out_tok_s": 120.0, "ttft_p50_ms": 10.0, "itl_p50_ms": 5.0, **case}
    assert "512/256 conc. 8 shared 0: out tok/s 1.20 x, TTFT p50 2.00 x, ITL p50 1.20 x" == (
        side_by_side.ratio_line(ours, vllm)
    )


def test_a_side_that_fails_or_takes_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that came are kept, the end of its log is shown, and at the deadline it is ended with all its
    children."""
    log = tmp_path / "log"
    row = """print('noise'); print('{"tag": "x"}', flush=True)"""
    failing = f"import sys; {row}; print('broken', file=sys.stderr); sys.exit(3)"
    deadline = time.monotonic() + 60
    made = list(side_by_side.measure("vllm", [sys.executable, "-c", failing], {}, deadline, log))
    assert [{"tag": "x"}] == made
    output = capsys.readouterr().out
    assert "vllm: ended by status 3" in output
    assert "broken" in output

    child = tmp_path / "child"

    class LateTimer(threading.Timer):
        """Does not end a program that has not come as far as it should, however slow the machine is."""

        def run(self) -> None:
            while not (child.exists() and child.read_text()):
                time.sleep(0.01)
            super().run()

    monkeypatch.setattr(side_by_side.threading, "Timer", LateTimer)
    hanging = f"""import subprocess; p = subprocess.Popen(["sleep", "1000"]); {row}
open({str(child)!r}, "w").write(str(p.pid)); p.wait()"""
    deadline = time.monotonic() + 0.1
    made = list(side_by_side.measure("vllm", [sys.executable, "-c", hanging], {}, deadline, log))
    assert [{"tag": "x"}] == made
    assert "vllm: ended by time limit" in capsys.readouterr().out
    while is_alive(int(child.read_text())):  # a killed process may still run for a moment
        time.sleep(0.01)


def profile(num_requests: int, tokens: list[int]) -> list[dict[str, Any]]:
    """Requests 1 s apart, the first response 100 ms later and the others every 10 ms."""
    return [
        {
            "timestamp": index * 10**9,
            "response_timestamps": [
                index * 10**9 + 100_000_000 + step * 10_000_000 for step in range(len(tokens))
            ],
            "response_outputs": [{"num_output_tokens": count} for count in tokens],
        }
        for index in range(num_requests)
    ]


def test_figures_of_a_profile() -> None:
    """Tokens are counted, not responses: a response may hold several. Lost tokens are an error."""
    case = Case(10, 4, 2, 2, 0)
    row = bench_serve.figures("x", case, profile(2, [1, 2, 1]))
    assert {
        "tag": "x",
        **case_key(case),
        "s": 1.12,
        "out_tok_s": 7.1,
        "responses_s": 5.4,
        "ttft_p50_ms": 100.0,
        "ttft_p99_ms": 100.0,
        "gap_p50_ms": 10.0,
        "gap_p99_ms": 10.0,
    } == row
    engine = [{"tag": "startup"}, {"tag": "warm-up", **row}, {"tag": "quire-1b", **row, "out_tok_s": 10.0}]
    engine[1]["tag"] = "warm-up"
    assert {**row, "of_engine": 0.71} == bench_serve.with_share(row, engine)
    assert row == bench_serve.with_share(row, engine[:2])
    with pytest.raises(ServerError, match=r"1 of 2 requests got 4 tokens; allowed: all of 2"):
        bench_serve.figures("x", case, profile(1, [1, 2, 1]) + profile(1, [1, 2]))
    with pytest.raises(ServerError, match=r"3 of 3 requests got 4 tokens; allowed: all of 2"):
        bench_serve.figures("x", case, profile(3, [1, 2, 1]))


@pytest.mark.parametrize(("rate", "share"), [(1050.0, 1.05), (1830.0, None)])
def test_a_share_above_the_whole_is_an_error(rate: float, share: float | None) -> None:
    """The ensemble cannot be faster than its engine: beyond the noise of two runs there is no row."""
    row = {"out_tok_s": rate, **case_key(Case(512, 256, 256, 768, 0))}
    engine = [{"tag": "quire-1b", **row, "out_tok_s": 1000.0}]
    if share:
        assert row | {"of_engine": share} == bench_serve.with_share(row, engine)
    else:
        with pytest.raises(
            ValueError, match=r"512/256 .* 256 .*of_engine: got 1\.83; allowed: at most 1\.05"
        ):
            bench_serve.with_share(row, engine)


class CutOffFirst(bench_serve.PerfAnalyzer):
    """perf_analyzer whose first attempt of each run sends its requests and leaves an empty profile."""

    def __init__(self, url: str, work: Path) -> None:
        super().__init__(url, work, max_threads=4, timeout=60)
        real, self._executable = self._executable, work / "cut_off_first"
        self._is_first = work / "is_first"
        cut_off = f'if rm "{self._is_first}" 2>&-; then : > "{work / "profile.json"}"; fi'
        self._executable.write_text(f'#!/bin/sh\n"{real}" "$@" || exit\n{cut_off}\n')
        self._executable.chmod(0o755)

    def run(self, case: Case, max_id: int) -> list[dict[str, Any]]:
        self._is_first.touch()
        requests = super().run(case, max_id)
        assert not self._is_first.exists()
        return requests


@pytest.mark.serving
def test_prompts_are_not_in_the_prefix_cache(tmp_path: Path) -> None:
    """After a cut-off attempt, and for the same case again, no prompt token is found in the prefix cache but
    those of the prefix that the case shares on purpose."""
    model = word_model.make("quire-8m", tmp_path / "model")
    settings = quire_options.settings_of("quire-8m", [], model)
    repository = bench_serve.make_repository(tmp_path / "models", {"model": str(model), **settings})

    def hits(server: TritonServer) -> float:
        return float(re.findall(r"^vllm:prefix_cache_hits_total.* (\S+)$", server.metrics(), re.MULTILINE)[0])

    with TritonServer(repository) as server:
        perf_analyzer = CutOffFirst(server.grpc_url, tmp_path)
        max_id = quire_options.max_id_of(model)
        for _ in range(2):
            assert 8 == len(perf_analyzer.run(Case(100, 2, 4, 8, 0), max_id))
        assert 0 == hits(server)
        perf_analyzer.run(Case(100, 2, 1, 8, 64), max_id)
        assert 0 < hits(server)
        assert 0 == hits(server) % (7 * 64), "in each attempt all but the first request find the prefix"


@pytest.mark.serving
def test_bench_serve(cases: Path, tmp_path: Path) -> None:
    """Through a real tritonserver every token arrives, and each row says which share of the engine's rate."""
    # Far more than any machine makes of this model: a share above 1 would be an error.
    rate = [{"tag": "quire-8m", **case_key(Case(*case)), "out_tok_s": 1e5} for case in TINY]
    engine = tmp_path / "engine.json"
    engine.write_text(json.dumps(rate))
    rows = rows_of(quire("bench", "serve", "--cases", str(cases), "--engine", str(engine)))
    assert ["startup", "warm-up", "serve-8m", "serve-8m"] == [row["tag"] for row in rows]
    for case, row in zip(TINY, rows[2:], strict=True):
        assert case_key(Case(*case)).items() <= row.items()
        assert row["of_engine"] == pytest.approx(row["out_tok_s"] / 1e5, abs=0.0006)
        assert 0 < row["gap_p50_ms"] <= row["gap_p99_ms"]


def test_bench_llm() -> None:
    """A row for each number of requests and of logprobs, without and with."""
    result = quire("bench", "llm", "--requests", "2", "3", "--logprobs", "1", "--tokens", "8")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["2"], ["3"])]
    assert [row[:2] for row in rows] == [["2", "none"], ["2", "1"], ["3", "none"], ["3", "1"]]
    assert all(float(value) > 0 for row in rows for value in row[2:])


def test_bench_accuracy() -> None:
    """A row for each format that divides the model's rows; fewer bits change more."""
    result = quire("bench", "accuracy", "--prompts", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")][1:]
    norms = {name: float(norm) for name, _, norm, _, _ in rows}
    assert len(norms) == 10
    assert norms["bfloat16"] < norms["fp8, a scale per output"] < norms["int4, groups of 32, zero points"]
    assert norms["int4, groups of 32"] < norms["int4, groups of 128"]
