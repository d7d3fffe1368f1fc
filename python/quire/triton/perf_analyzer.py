"""perf_analyzer, NVIDIA's load tool: found in the tritonclient wheel (2.50: the last with it) or on PATH, and
run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quire.errors import ServerError, ServerNotFound
from quire.triton.installation import find_installation

log = logging.getLogger(__name__)

# What the wheel's binary links, and the stems of the same libraries in the nvidia-pytriton wheel.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}

# 2.50 ends once in twenty times with status 0 and a profile that is empty, or cut off; and was seen to hang.
_ATTEMPTS = 4


def find_perf_analyzer(library_folder: Path) -> tuple[Path, dict[str, str]]:
    """The executable and the environment it needs. Links to libraries that the machine lacks are put into
    `library_folder`. Raises ServerNotFound."""
    beside_python = Path(sys.executable).parent / "perf_analyzer"
    found = beside_python if beside_python.is_file() else shutil.which("perf_analyzer")
    if not found:
        raise ServerNotFound(
            "perf_analyzer: not found; install it with `pip install 'tritonclient[all]==2.50.0'`"
        )
    if libs := find_installation().libs:
        library_folder.mkdir(parents=True, exist_ok=True)
        for name, pattern in _LIBRARIES.items():
            target = next(libs.glob(pattern), None)
            if target and not (library_folder / name).is_symlink():
                (library_folder / name).symlink_to(target)
    return Path(found), {"LD_LIBRARY_PATH": str(library_folder)}


def recorded_requests(
    command: Sequence[str],
    environment: Mapping[str, str],
    profile: Path,
    timeout: float | None = None,
    before_attempt: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Runs perf_analyzer, whose --profile-export-file is `profile`; the requests of that file. An attempt
    whose profile is cut off, or that does not end within `timeout` seconds, has sent its requests all the
    same: `before_attempt` is called before each one, to write an input that the server has not seen. Raises
    ServerError with the end of its output."""
    for _ in range(_ATTEMPTS):
        before_attempt()
        profile.unlink(missing_ok=True)  # it refuses to write over it
        try:
            status, output = _run(command, {**os.environ, **environment}, timeout)
        except subprocess.TimeoutExpired:
            problem = f"did not end within {timeout} s"
            log.warning("perf_analyzer %s; it is started again", problem)
            continue
        problem = "\n".join([f"status {status}, no whole profile", *output.splitlines()[-15:]])
        if status:
            break
        with suppress(OSError, json.JSONDecodeError):
            experiments = json.loads(profile.read_bytes())["experiments"]
            return [request for experiment in experiments for request in experiment["requests"]]
    raise ServerError(f"perf_analyzer: {problem}")


def _run(command: Sequence[str], environment: Mapping[str, str], timeout: float | None) -> tuple[int, str]:
    """Status and output. Whatever ends the wait ends the program and what it has started."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output
