"""What is read of a tritonserver's log and of its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from quire.triton import server_log
from quire.triton.server import ended
from quire.triton.server_arguments import is_on, models_at_start, value_of
from quire.triton.server_log import ServerLog

INFORMATION = 'I1130 10:00:00.000000 1 server.cc:1] "loading"\n'
ERROR = 'E1130 10:00:00.000000 1 model.cc:1] "out of order"\n'
NOISE = 'W1130 10:00:00.000000 1 metrics.cc:1] "no GPU"\n'


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_come_once(tmp_path: Path) -> None:
    """Each complete line is read once, of the output and of the file of `--log-file`, without older runs."""
    output, log_file = tmp_path / "server.log", tmp_path / "triton.log"
    append(log_file, "an older run\n")
    log = ServerLog(output, log_file)
    append(output, "crash\nhal")
    append(log_file, INFORMATION)
    assert log.new_lines() == ["crash", INFORMATION.strip()]
    append(output, "f\n")
    assert log.new_lines() == ["half"]
    assert log.new_lines() == []
    assert log.text() == f"crash\nhalf\n{INFORMATION}"


def test_a_file_that_is_emptied(tmp_path: Path) -> None:
    """A log file that the server begins anew is read from its beginning."""
    log_file = tmp_path / "triton.log"
    append(log_file, "an older run, of many lines\n")
    log = ServerLog(tmp_path / "server.log", log_file)
    log_file.write_text("new\n")
    assert log.new_lines() == ["new"]
    assert log.text() == "new\n"


def test_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server said just before its end counts; what is old, information, or about missing GPUs does
    not."""
    now = 1000.0
    monkeypatch.setattr(server_log.time, "monotonic", lambda: now)
    log = ServerLog(tmp_path / "server.log")
    append(tmp_path / "server.log", ERROR)
    log.new_lines()
    now += 3600
    append(tmp_path / "server.log", f"{INFORMATION}{NOISE}\nterminate called\n")
    log.new_lines()
    assert log.last_words() == ["terminate called"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with status 0"),
        (1, "ended with status 1"),
        (-11, "was killed by SIGSEGV"),
        (-6, "was killed by SIGABRT"),
        (-9, "was killed by SIGKILL (as the kernel does where memory is short: see dmesg)"),
        (-64, "was killed by SIGRTMAX"),
        (-40, "was killed by signal 40"),
    ],
)
def test_how_it_ended(status: int, text: str) -> None:
    """A signal is named, and a status is given as it is."""
    assert ended(status) == text


def test_arguments() -> None:
    """Both spellings of a flag's value are read, and the last one counts."""
    assert value_of("--log-file", ["--log-file", "a", "--log-file=b"]) == "b"
    assert value_of("--log-file", ["--log-files=a"]) == ""
    assert is_on("--exit-on-error", [])
    assert not is_on("--exit-on-error", ["--exit-on-error=false"])
    assert models_at_start([]) is None
    assert models_at_start(["--load-model=a"]) is None  # no explicit model control
    explicit = ["--model-control-mode", "explicit"]
    assert models_at_start(explicit) == []
    assert models_at_start([*explicit, "--load-model=a", "--load-model", "b"]) == ["a", "b"]
    assert models_at_start([*explicit, "--load-model=*"]) is None
