"""The private folder of one server's run, and what runs that were killed left behind.

Whoever owns a folder holds a lock on the file `lock` in it; the kernel gives it up when the owner ends.
Shared memory of the run has the folder's name as its prefix.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "quire-server-"
_SHARED_MEMORY = Path("/dev/shm")


class RunFolder:
    """A new folder, `path`, until remove()."""

    def __init__(self) -> None:
        remove_leftovers()
        # Under its final name only when it is locked: another start must not take it for a leftover.
        unlocked = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}"))
        self._lock = os.open(unlocked / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix("new-")))

    def remove(self) -> None:
        """With the shared memory that the server left because it was killed."""
        _remove(self.path)
        os.close(self._lock)


def remove_leftovers() -> None:
    """Removes the folders and shared memory of this user's servers whose owner has ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # No lock: not ours, or of another version, which may be running.
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    for path in _SHARED_MEMORY.glob(f"{folder.name}*"):
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)
