"""perf_analyzer, NVIDIA's load tool: found in the tritonclient wheel (2.50: the last with it) or on PATH, and
run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quire.errors import ServerError, ServerNotFound
from quire.triton.installation import find_installation

# What the wheel's binary links, and the stems of the same libraries in the nvidia-pytriton wheel.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}

# 2.50 ends once in twenty times with status 0 and a profile that is empty, or cut off.
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
    """Runs perf_analyzer, whose --profile-export-file is `profile`, for at most `timeout` seconds; the
    requests of that file. An attempt whose profile is cut off has sent its requests all the same:
    `before_attempt` is called before each one, to write an input that the server has not seen. Raises
    ServerError with the end of its output."""
    for _ in range(_ATTEMPTS):
        before_attempt()
        profile.unlink(missing_ok=True)  # it refuses to write over it
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            break
        with suppress(OSError, json.JSONDecodeError):
            experiments = json.loads(profile.read_bytes())["experiments"]
            return [request for experiment in experiments for request in experiment["requests"]]
    output = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
    raise ServerError(f"perf_analyzer: status {done.returncode}, no whole profile\n{output}")
