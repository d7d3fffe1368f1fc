"""Runs the check of a repository in a process of its own: a hostile model folder can cost no more than that
process, and what the check loads (torch, a GPU's driver) goes with it.

Run as a program, ``python -m quire.triton.check_process REPOSITORY MODELS``: prints each problem as a line of
JSON. `MODELS` is a JSON list of the models that will be loaded, or null.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from quire.end_with_parent import end_with_parent
from quire.errors import QuireError, ServerError
from quire.triton.problem import Problem
from quire.triton.server import ended

TIMEOUT = 300.0  # seconds; a check of large tokenizers on a busy machine takes ten


def check_repository_apart(repository: Path, models: Sequence[str] | None = None) -> list[Problem]:
    """Finds what check_repository() finds. A check that does not get to its end is a problem, too."""
    command = [sys.executable, "-m", __name__, str(repository), json.dumps(models)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, env=environment, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return [Problem(file=repository, message=f"the check did not end in {TIMEOUT:g} s")]
    if result.returncode != 0:
        return [Problem(file=repository, message=f"the check {ended(result.returncode)}")]
    entries = [json.loads(line) for line in result.stdout.decode("utf-8").splitlines()]
    for entry in entries:
        if "error" in entry:
            raise ServerError(entry["error"])
    return [Problem(**(entry | {"file": Path(entry["file"])})) for entry in entries]


def main() -> int:
    end_with_parent(os.getppid())
    # Where memory is short, this process is the one to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    from quire.triton.check import check_repository

    try:
        problems = check_repository(Path(sys.argv[1]), json.loads(sys.argv[2]))
    except QuireError as error:
        print(json.dumps({"error": str(error)}))
        return 0
    for problem in problems:
        print(json.dumps(dataclasses.asdict(problem) | {"file": str(problem.file)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
