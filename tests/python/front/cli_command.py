"""Runs the command `quire` as a user does, with warnings as errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# As in pyproject.toml: what it says on Python 3.12 and later.
PROTOBUF_4 = "ignore:Type google._upb._message:DeprecationWarning"


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    program = "from quire.cli import app; app()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", PROTOBUF_4, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )
