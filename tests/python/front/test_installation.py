"""Finding tritonserver and laying out what a run needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from quire.errors import ServerNotFound
from quire.triton import installation
from quire.triton.installation import Installation, backend_directory, find_installation, lay_out

OTHER_PYTHON = "3.8" if sys.version_info[:2] != (3, 8) else "3.9"


def fake_server(root: Path, python: str) -> Path:
    """A tritonserver as in NVIDIA's container, whose Python stub is for `python`."""
    executable = root / "bin" / "tritonserver"
    stub = root / "backends" / "python" / "triton_python_backend_stub"
    for path in (executable, stub):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x7fELF\0libc.so.6\0libpython" + python.encode() + b".so.1.0\0")
        path.chmod(0o755)
    return executable


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        installation.importlib.util, "find_spec", lambda name: None if name == "pytriton" else find_spec(name)
    )


def test_in_the_wheel() -> None:
    """The wheel's server comes with a stub for the running Python."""
    found = find_installation()
    assert found.executable.name == "tritonserver"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in found.stub.parts
    assert (found.backends / "python" / "libtriton_python.so").is_file()


@pytest.mark.usefixtures("without_wheel")
def test_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the server on PATH; its Python backend is used where it is for our Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    executable = fake_server(tmp_path / "good", version)
    monkeypatch.setenv("PATH", str(executable.parent))
    assert find_installation() == Installation(
        executable=executable,
        backends=tmp_path / "good" / "backends",
        stub=tmp_path / "good" / "backends" / "python" / "triton_python_backend_stub",
    )
    executable = fake_server(tmp_path / "other", OTHER_PYTHON)
    monkeypatch.setenv("PATH", str(executable.parent))
    assert find_installation().stub is None
    shutil.rmtree(tmp_path / "other" / "backends")
    assert find_installation().stub is None
    lay_out(tmp_path / "root", find_installation())
    assert [path.name for path in backend_directory(tmp_path / "root").iterdir()] == ["quire"]


@pytest.mark.usefixtures("without_wheel")
def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server the message says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(installation, "_CONTAINER", tmp_path / "opt" / "tritonserver")
    with pytest.raises(ServerNotFound, match=r"pip install 'quire\[server\]'"):
        find_installation()


def test_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The private environment's python3 sees what we see: our packages, and the folders of PYTHONPATH."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "only_on_pythonpath.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(extra), os.environ.get("PYTHONPATH", "")]))
    root = tmp_path / "root"
    env = lay_out(root, find_installation())
    names = {path.name for path in (backend_directory(root) / "python").iterdir()}
    assert {"libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py"} <= names
    assert (backend_directory(root) / "quire" / "libtriton_quire.so").is_file()
    assert shutil.which("python3", path=env["PATH"]) == str(root / "bin" / "python3")
    assert sys.executable == env["QUIRE_PYTHON"]

    program = (
        "import numpy, quire, tokenizers, only_on_pythonpath as o; print(numpy.__file__, quire.__file__)"
    )
    del env["PYTHONPATH"]  # the stub does not read it either
    output = subprocess.check_output([str(root / "bin" / "python3"), "-c", program], env=env, text=True)
    import numpy
    import quire

    assert output.split() == [numpy.__file__, quire.__file__]


def test_missing_backend_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libtriton_quire.so the error says where it was looked for and how to get it."""
    monkeypatch.setattr(installation, "native_folder", lambda: None)
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "triton" / "installation.py"))
    with pytest.raises(
        ServerNotFound, match=rf"^libtriton_quire\.so: not found at {tmp_path}/lib.*pip install"
    ):
        lay_out(tmp_path / "root", find_installation())
