"""docs/generate.py, which `make docs` and `make lint` run."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from quire.config import EngineConfig
from quire.engine_arguments import ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))  # a folder of programs
    return importlib.import_module("generate")


@pytest.fixture
def checkout(program: ModuleType, tmp_path: Path) -> Path:
    """Copies of the generated files, brought up to date."""
    for name in program.GENERATED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    program.main(["--root", str(tmp_path)])
    return tmp_path


def test_check_names_each_stale_file_and_writes_nothing(
    program: ModuleType, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 and the file's name, for a changed, a missing and a partly generated file; `make docs` then
    writes all of them."""
    check = ["--check", "--root", str(checkout)]
    assert program.main(check) == 0
    header, settings, readme = (
        checkout / name for name in ("cpp/include/quire/fields.h", "docs/settings.md", "README.md")
    )
    header.write_text(header.read_text() + "\n")
    settings.unlink()
    readme.write_text(readme.read_text().replace("| 8B | 512/256 | 1 |", "| 8B | 512/256 | 2 |"))
    capsys.readouterr()
    assert program.main(check) == 1
    stale = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert stale == ["cpp/include/quire/fields.h", "docs/settings.md", "README.md"]
    assert not settings.exists()
    assert program.main(["--root", str(checkout)]) == 0
    assert program.main(check) == 0


def test_text_around_the_marks_is_kept(program: ModuleType, checkout: Path) -> None:
    """What people write in the README and in docs/numbers.md stays; a page without its marks is refused."""
    readme = checkout / "README.md"
    readme.write_text(f"before\n{readme.read_text()}after\n")
    program.main(["--root", str(checkout)])
    assert readme.read_text().startswith("before\n# Quire\n")
    assert readme.read_text().endswith("after\n")
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match="allowed: a page with both"):
        program.main(["--root", str(checkout)])


def test_an_output_is_in_every_model_that_has_it(program: ModuleType, checkout: Path) -> None:
    """Rows of an output and its field that the configurations lack come back, and no other changes."""
    names = [name for name in program.GENERATED if name.endswith("config.pbtxt")]

    def rows(name: str) -> list[str]:
        return sorted(re.findall(r"\{ (?:name|key): [^}]+\}", (checkout / name).read_text()))

    before = {name: rows(name) for name in names}
    for name in names:
        text = (checkout / name).read_text()
        text = re.sub(r',\s*\{ (?:name|key): "(?:return_)?receipt"[^}]+\}', "", text)
        (checkout / name).write_text(text)
        assert "receipt" not in str(rows(name))
    program.main(["--root", str(checkout)])
    assert before == {name: rows(name) for name in names}


def test_every_setting_has_a_row(program: ModuleType) -> None:
    """docs/settings.md has name, default, range and meaning of every engine setting, and all of vLLM's other
    arguments."""
    page, _, arguments = program.GENERATED["docs/settings.md"]("").partition("## vLLM's")
    assert sorted(re.findall(r"`(\w+)`(?=[^|]*\| .* \| .*\|$)", arguments, re.MULTILINE)) == sorted(ARGUMENTS)
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip(" `") for row in rows] == list(EngineConfig.model_fields)
    assert all(len(row) == 4 and row[2].strip() and row[3].strip() for row in rows)
