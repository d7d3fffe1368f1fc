"""The command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_command import ROOT, run
from quire.cli import app, bench
from quire.outputs import CompletionOutput, RequestOutput
from typer.testing import CliRunner


def test_entry_point() -> None:
    """`quire` is the app."""
    assert '[project.scripts]\nquire = "quire.cli:app"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("command", ["serve", "generate", "check", "check-stream", "demo", "bench"])
def test_help(command: str) -> None:
    """Every command explains itself."""
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_light() -> None:
    """The command line answers without loading torch."""
    program = "import sys; from quire.cli import app; print('torch' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--temperature", "3"], "temperature: got 3.0; allowed: a number in [0, 2]\n"),
        (["é\udcff"], "PROMPT: got invalid UTF-8 at byte 2; allowed: UTF-8 text\n"),
        (["x", "--stop", "\udcff"], "--stop: got invalid UTF-8 at byte 0; allowed: UTF-8 text\n"),
        (["x", "--model", "./nowhere"], "model: got './nowhere', but there is no folder "),
    ],
)
def test_generate_refuses(arguments: list[str], message: str) -> None:
    """A mistake is one line and status 1, not a traceback."""
    result = CliRunner().invoke(app, ["generate", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_generate_says_what_ended_the_answer_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that ends with an error is shown as far as it came, with the error and status 1."""

    class Failing:
        def __init__(self, model: str) -> None: ...

        def generate(self, prompt: str, _: object) -> list[RequestOutput]:
            failed = CompletionOutput(
                index=0, text=" = 1", token_ids=(5,), finish_reason="error", error="no token can be sampled"
            )
            return [
                RequestOutput(
                    request_id=0, prompt=prompt, prompt_token_ids=(4,), num_cached_tokens=0, outputs=(failed,)
                )
            ]

    monkeypatch.setattr("quire.llm.LLM", Failing)
    result = CliRunner().invoke(app, ["generate", "x"])
    assert 1 == result.exit_code
    assert "x = 1\n" in result.output
    assert "no token can be sampled" in result.output
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_generate() -> None:
    """The embedded model continues the prompt."""
    result = run("generate", "def fibonacci(n):", "--max-tokens", "8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("def fibonacci(n):\n")
    assert len(result.stdout) > len("def fibonacci(n):\n") + 5


def test_serve_refuses_a_bad_repository(tmp_path: Path) -> None:
    """serve checks before it starts."""
    result = CliRunner().invoke(app, ["serve", "--model-repository", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "no such folder" in result.output


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench lists the scripts, runs one with its arguments, or all, and returns the worst status."""
    output = tmp_path / "output"
    for name, status in (("engine", 0), ("scheduler", 7)):
        program = f"import sys; open({str(output)!r}, 'a').write(str(sys.argv[1:])); sys.exit({status})"
        (tmp_path / f"bench_{name}.py").write_text(f'"""Measures the {name}."""\n{program}')
    find = bench.benchmarks
    monkeypatch.setattr(bench, "benchmarks", lambda: find(tmp_path))
    result = CliRunner().invoke(app, ["bench"])
    assert (
        result.exit_code,
        result.output,
    ) == (0, "engine       Measures the engine.\nscheduler    Measures the scheduler.\n")
    assert CliRunner().invoke(app, ["bench", "scheduler", "--requests", "3"]).exit_code == 7
    assert output.read_text() == "['--requests', '3']"
    assert CliRunner().invoke(app, ["bench", "all"]).exit_code == 7
    assert output.read_text() == "['--requests', '3'][][]"
    result = CliRunner().invoke(app, ["bench", "schedule"])
    assert (
        result.exit_code,
        result.output,
    ) == (1, 'bench: got "schedule" (did you mean "scheduler"?); allowed: engine, scheduler, all\n')
    monkeypatch.setattr(bench, "benchmarks", lambda: find(tmp_path / "none"))
    result = CliRunner().invoke(app, ["bench"])
    assert (
        result.exit_code,
        result.output,
    ) == (1, "bench: no folder benchmarks here; allowed: a source checkout\n")
