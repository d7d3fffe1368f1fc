"""Running perf_analyzer, with a stand-in for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from quire.errors import ServerError
from quire.triton.perf_analyzer import recorded_requests

STAND_IN = """
import pathlib, sys
profile, runs = map(pathlib.Path, sys.argv[1:3])
first_good, status = map(int, sys.argv[3:])
assert not profile.exists()
with runs.open("a") as file:
    file.write("x")
good = '{"experiments": [{"requests": [{"timestamp": 1}]}, {"requests": [{"timestamp": 2}]}]}'
num_runs = len(runs.read_text())
profile.write_text(good if num_runs >= first_good else good[: 20 * (num_runs - 1)])
print("the end of its output")
sys.exit(status)
"""


def run(folder: Path, first_good: int, status: int = 0) -> list[dict[str, int]]:
    script = folder / "stand_in.py"
    script.write_text(STAND_IN)
    command = [sys.executable, script, folder / "profile", folder / "runs", first_good, status]
    return recorded_requests([str(word) for word in command], {}, folder / "profile")


def test_an_empty_or_cut_off_profile_is_run_again(tmp_path: Path) -> None:
    assert run(tmp_path, first_good=3) == [{"timestamp": 1}, {"timestamp": 2}]
    assert (tmp_path / "runs").read_text() == "xxx"


def test_each_attempt_gets_an_input_of_its_own(tmp_path: Path) -> None:
    """before_attempt is called before every attempt, after the profile of the one before is gone."""
    profile, runs, calls = tmp_path / "profile", tmp_path / "runs", []

    def write_input() -> None:
        calls.append(runs.read_text() if runs.exists() else "")

    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    command = [sys.executable, str(script), str(profile), str(runs), "3", "0"]
    recorded_requests(command, {}, profile, before_attempt=write_input)
    assert calls == ["", "x", "xx"]


@pytest.mark.slow  # waits ten seconds
def test_one_that_hangs_is_run_again(tmp_path: Path) -> None:
    """With all that it has started."""
    hang = (
        f'if [ -e "{tmp_path / "runs"}" ]; then exec "$@"; fi; touch "{tmp_path / "runs"}"; sleep 1000; true'
    )
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    words = ["sh", "-c", hang, "sh", sys.executable, script, tmp_path / "profile", tmp_path / "runs", 1, 0]
    requests = recorded_requests([str(word) for word in words], {}, tmp_path / "profile", timeout=10)
    assert requests == [{"timestamp": 1}, {"timestamp": 2}]


def test_not_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="status 0, no whole profile\nthe end of its output"):
        run(tmp_path, first_good=99)


def test_a_failure_is_not_run_again(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="status 3"):
        run(tmp_path, first_good=1, status=3)
    assert (tmp_path / "runs").read_text() == "x"
