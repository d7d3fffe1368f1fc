"""The launches of the CUDA executor, recorded without a GPU (recorded_launches.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
EXPECTED = (FOLDER / "llama_launches.txt").read_text().splitlines()


def recorded(**config: Any) -> list[str]:
    program = [sys.executable, str(FOLDER / "recorded_launches.py"), json.dumps(config)]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()


def test_llama_launches_what_it_always_did() -> None:
    """The same kernels with the same arguments, in the same order, on the same weights."""
    lines = recorded()
    for number, (want, got) in enumerate(zip(EXPECTED, lines, strict=False), 1):
        assert want == got, f"llama_launches.txt:{number}"
    assert len(EXPECTED) == len(lines)
