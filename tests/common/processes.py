"""Processes of this machine, read from /proc, where each of them may end at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def is_alive(pid: int) -> bool:
    """False for a process that is gone, and for one that has ended and waits for its parent to notice."""
    return state_and_parent(pid)[0] not in ("", "Z", "X")


def children(pid: int) -> dict[int, str]:
    """The command lines of the live processes whose parent is `pid`."""
    found = {}
    for child in all_pids():
        state, parent = state_and_parent(child)
        if parent == pid and state != "Z":
            found[child] = command_line(child)
    return found


def command_line(pid: int) -> str:
    """A process's arguments, a space after each; empty when the process is gone."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")


def with_environment(entry: str) -> list[int]:
    """The processes that were started with `entry`, NAME=VALUE, in their environment."""
    return [pid for pid in all_pids() if entry.encode() in _read(pid, "environ").split(b"\0")]


def all_pids() -> Iterator[int]:
    return (int(path.name) for path in PROC.iterdir() if path.name.isdigit())


def state_and_parent(pid: int) -> tuple[str, int]:
    """The state's letter and the parent; an empty letter when the process is gone."""
    # The command's name comes before them in parentheses, and may hold anything.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("", 0)


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty when it has ended, before the file was opened or since."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
