"""Finds perf_analyzer, NVIDIA's load tool: in the tritonclient wheel (2.50: the last with it), or on PATH."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from quire.errors import ServerNotFound
from quire.triton.installation import find_installation

# What the wheel's binary links, and the stems of the same libraries in the nvidia-pytriton wheel.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


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
