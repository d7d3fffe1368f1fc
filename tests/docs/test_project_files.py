"""Files for contributors, compared with what they repeat."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_hooks_have_the_versions_of_the_project() -> None:
    """.pre-commit-config.yaml formats with the versions that `make lint` checks with."""
    hooks = set(re.findall(r'"(ruff|clang-format)==([\d.]+)"', read(".pre-commit-config.yaml")))
    project = set(re.findall(r'"(ruff|clang-format)==([\d.]+)"', read("pyproject.toml")))
    assert len(project) == 2
    assert hooks == project


def test_the_workflow_runs_every_python_of_the_readme() -> None:
    """The matrix of CI is the range of Pythons that README.md and pyproject.toml name."""
    [matrix] = re.findall(r"python: \[(.*)\]", read(".github/workflows/ci.yml"))
    [(oldest, newest)] = re.findall(r"Python 3\.(\d+) to 3\.(\d+)", read("README.md"))
    assert re.findall(r'"3\.(\d+)"', matrix) == [str(i) for i in range(int(oldest), int(newest) + 1)]
    assert f'requires-python = ">=3.{oldest}"' in read("pyproject.toml")


def test_commands_of_the_pages_exist() -> None:
    """Every `make TARGET` in README.md, CONTRIBUTING.md, the pages of docs and the workflow is a target."""
    makefile = read("Makefile")
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", ".github/workflows/ci.yml")]
    for page in [*pages, *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text("utf-8")
        for target in re.findall(r"(?:`|^|run: )make (?:-j\d+ )?([a-z][a-z-]*)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_the_readme_is_short() -> None:
    """README.md is for somebody who has two minutes: at most 130 lines."""
    assert len(read("README.md").splitlines()) <= 130


def test_no_page_has_the_marks_of_a_merge() -> None:
    """Pages are not compiled, so a conflict that was committed would go unseen."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"^(<<<<<<<|>>>>>>>) ", page.read_text("utf-8"), re.MULTILINE), page
