"""What a step of every published config launches on a GPU, recorded without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from family_checkpoints import CONFIGS
from quire.errors import UnsupportedModel
from quire.models.config import load_model_config

PROGRAM = Path(__file__).parent.parent / "python" / "engine" / "recorded_launches.py"
# GEMMs of many rows, what learned positions and scaled queries take from their tables, and sums that no norm
# follows.
TORCH = {"torch.mm", "torch.addmm", "torch.index_select", "torch.add_", "torch.mul_"}


def served(folder: Path) -> list[str]:
    """The configs that are not refused."""
    names = []
    for name, file in CONFIGS.items():
        (folder / "config.json").write_text(file.read_text())
        try:
            load_model_config(folder)
        except UnsupportedModel:
            continue
        names.append(name)
    return names


@pytest.mark.slow
def test_every_family_has_its_launches(tmp_path: Path) -> None:
    """A decode step and one with a prompt run through, kernels get the arguments that they have, and what
    torch computes beside is named here."""
    names = served(tmp_path)
    assert names
    program = [sys.executable, str(PROGRAM), *(str(CONFIGS[name]) for name in names)]
    run = subprocess.run(program, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lists = run.stdout.split("\n\n")
    assert len(names) == len(lists)
    for name, lines in zip(names, lists, strict=True):
        launches = {line.split()[0] for line in lines.splitlines() if not line.startswith("#")}
        assert {"embedding", "paged_attention", "logits"} <= launches, name
        assert {launch for launch in launches if launch.startswith("torch.")} <= TORCH, name
