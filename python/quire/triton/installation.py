"""Finds tritonserver and lays out what it needs to run our models: backends, a Python, libraries.

The layout of one run, a private folder that holds little more than links:

    pytriton/tritonserver/backends/{quire,python}, nvidia_pytriton.libs
        The backends; python, for people's own Python models, where the server has one for our Python.
        Libraries of the wheel look for others four folders up, so the depth matters.
    pyvenv.cfg, bin/python3, lib/python3.X/site-packages/quire.pth
        A small virtual environment. Triton's Python stub ignores PYTHONPATH and takes the site-packages of
        the `python3` first on PATH, so this one leads it to the packages of the Python that runs us.
    lib/native/libpython3.X.so.1.0
        The stub links it, and many Pythons keep it where the loader does not look.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from quire.errors import ServerNotFound
from quire.model_path import native_folder

_INSTALL_HINT = (
    "tritonserver: not found in the nvidia-pytriton wheel, on PATH, or in /opt/tritonserver; "
    "install it with `pip install 'quire[server]'`, or run inside NVIDIA's Triton container"
)
_CONTAINER = Path("/opt/tritonserver")
_PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """One tritonserver on this machine."""

    executable: Path
    backends: Path
    # triton_python_backend_stub for the Python that runs us. None: people's own Python models do not load.
    stub: Path | None = None
    libs: Path | None = None  # libraries of the wheel
    caches: Path | None = None  # response caches; None: where the executable looks for them


def find_installation() -> Installation:
    """tritonserver in the nvidia-pytriton wheel, else on PATH, else in /opt/tritonserver."""
    if wheel := _in_wheel():
        return wheel
    candidates = [shutil.which("tritonserver"), _CONTAINER / "bin" / "tritonserver"]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            executable = Path(candidate).resolve()
            backends = executable.parents[1] / "backends"
            stub = backends / "python" / "triton_python_backend_stub"
            return Installation(executable=executable, backends=backends, stub=stub if _fits(stub) else None)
    raise ServerNotFound(_INSTALL_HINT)


def find_backend_library() -> Path:
    """libtriton_quire.so of the installed package."""
    return _find_library("libtriton_quire.so")


def find_guard_library() -> Path:
    """libquire_guard.so, which is preloaded into tritonserver."""
    return _find_library("libquire_guard.so")


def _find_library(name: str) -> Path:
    # Beside the compiled module first: an editable install has it elsewhere than the sources.
    folders = [folder for folder in (native_folder(), Path(__file__).resolve().parents[1]) if folder]
    tried = [folder / "lib" / name for folder in folders]
    for path in tried:
        if path.is_file():
            return path
    raise ServerNotFound(
        f"{name}: not found at {' or '.join(str(path) for path in dict.fromkeys(tried))}; "
        "install the package (`pip install .`) or build it (`cmake --install build --prefix python`)"
    )


def lay_out(root: Path, installation: Installation, *, with_guard: bool = True) -> dict[str, str]:
    """Fill `root` as the head of this file says; returns the environment to run tritonserver with.
    `root` / "pytriton/tritonserver/backends" is its --backend-directory."""
    backends = backend_directory(root)
    (backends / "quire").mkdir(parents=True)
    (backends / "quire" / "libtriton_quire.so").symlink_to(find_backend_library())
    if installation.stub:
        (backends / "python").mkdir()
        for path in (installation.backends / "python").iterdir():
            if path.is_file() and path.name != "triton_python_backend_stub":
                (backends / "python" / path.name).symlink_to(path)
        (backends / "python" / "triton_python_backend_stub").symlink_to(installation.stub)
    for path in installation.backends.glob("*"):  # for models of other kinds beside ours
        if path.is_dir() and path.name not in ("python", "quire"):
            (backends / path.name).symlink_to(path)
    if installation.libs:
        (root / "nvidia_pytriton.libs").symlink_to(installation.libs)
    _make_environment(root)

    env = dict(os.environ)
    env["PATH"] = f"{root / 'bin'}{os.pathsep}{env.get('PATH', '')}"
    env.setdefault("QUIRE_PYTHON", sys.executable)
    # For QUIRE_PYTHON, which does read it: the package is importable there as it is here.
    env["PYTHONPATH"] = os.pathsep.join(_extra_paths())
    if library := _libpython():
        native = root / "lib" / "native"
        native.mkdir(parents=True)
        (native / library.name).symlink_to(library)
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(native), env.get("LD_LIBRARY_PATH")]))
    if with_guard:
        env["LD_PRELOAD"] = os.pathsep.join(filter(None, [str(find_guard_library()), env.get("LD_PRELOAD")]))
    return env


def backend_directory(root: Path) -> Path:
    return root / "pytriton" / "tritonserver" / "backends"


def _in_wheel() -> Installation | None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).resolve().parent / "tritonserver"
    executable = folder / "bin" / "tritonserver"
    if not executable.is_file():
        return None
    stub = folder / "python_backend_stubs" / _PYTHON_VERSION / "triton_python_backend_stub"
    return Installation(
        executable=executable,
        backends=folder / "backends",
        stub=stub if stub.is_file() else None,
        libs=folder.parents[1] / "nvidia_pytriton.libs",
        caches=folder / "caches",
    )


def _fits(stub: Path) -> bool:
    """A stub has one Python inside; ours must be the same for its packages to load there."""
    if not stub.is_file():
        return False
    found = re.search(rb"libpython(3\.\d+)[^\0]*\.so", stub.read_bytes())
    return found is None or found.group(1).decode() == _PYTHON_VERSION


def _make_environment(root: Path) -> None:
    packages = root / "lib" / f"python{_PYTHON_VERSION}" / "site-packages"
    packages.mkdir(parents=True)
    (root / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable))
    for name in ("python3", "python"):
        (root / "bin" / name).symlink_to(base)
    (root / "pyvenv.cfg").write_text(
        f"home = {base.resolve().parent}\n"
        "include-system-site-packages = false\n"
        f"version = {platform.python_version()}\n"
    )
    # addsitedir() also follows the .pth files in there, which is how editable installs work.
    lines = [*_extra_paths(), *(f"import site; site.addsitedir({path!r})" for path in _site_folders())]
    (packages / "quire.pth").write_text("".join(f"{line}\n" for line in lines))


def _site_folders() -> list[str]:
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in folders if Path(folder).is_dir()]


def _extra_paths() -> list[str]:
    """PYTHONPATH, and the folder this package was imported from when that is in no site folder."""
    paths = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths.append(str(Path(__file__).resolve().parents[2]))
    return list(dict.fromkeys(path for path in paths if path not in _site_folders()))


def _libpython() -> Path | None:
    """The shared library of this Python, when there is one."""
    name = f"libpython{_PYTHON_VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        folders.append(Path("/usr/lib") / multiarch)
    return next(
        (Path(folder) / name for folder in folders if folder and (Path(folder) / name).is_file()), None
    )
