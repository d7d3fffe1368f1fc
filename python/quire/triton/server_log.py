"""What a tritonserver says: on its output, and in the file that `--log-file` names."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

# What tritonserver logs as errors on every machine without a GPU.
_NOISE = re.compile(r"CUDA|NVML|DCGM|pinned memory|GPU", re.IGNORECASE)
_INFORMATION = re.compile(r"^I\d{4} ")  # glog's: a letter and the date
_ERROR_LINE = re.compile(r"^(E\d{4} |error:)")
_FAILED_LOAD = re.compile(r"\"failed to load '([^']+)' version \d+: (.*)\"$", re.MULTILINE)
_LAST_SECONDS = 5.0


class ServerLog:
    """The log of one run. A file of the user's may hold older runs: only what comes after is read."""

    def __init__(self, output: Path, log_file: Path | None = None) -> None:
        self._begins = {output: 0}
        if log_file is not None:
            self._begins[log_file] = log_file.stat().st_size if log_file.is_file() else 0
        self._read = dict(self._begins)
        self._unfinished = dict.fromkeys(self._begins, "")
        self._recent: deque[tuple[float, str]] = deque(maxlen=40)

    def text(self) -> str:
        contents = (self._bytes_after(path, begin) for path, begin in self._begins.items())
        return "".join(content.decode("utf-8", "replace") for content in contents)

    def new_lines(self) -> list[str]:
        """The complete lines that came since the last call."""
        found = []
        for path, offset in self._read.items():
            data = self._bytes_after(path, offset)
            self._read[path] = offset + len(data)
            *lines, self._unfinished[path] = (self._unfinished[path] + data.decode("utf-8", "replace")).split(
                "\n"
            )
            found += lines
        self._recent += [(time.monotonic(), line) for line in found]
        return found

    def last_words(self) -> list[str]:
        """What the server said last before it ended, without what is no trouble; call new_lines() before.
        Lines that are older than a few seconds are about something else."""
        since = time.monotonic() - _LAST_SECONDS
        return [line for when, line in self._recent if when >= since and is_trouble(line)]

    def error_lines(self) -> str:
        """What the server says went wrong: why models did not load, else its error lines (without those of
        every machine without a GPU), else the end of its log."""
        log = self.text()
        if failed := _FAILED_LOAD.findall(log):
            return "\n".join(f"{name}: {_unescaped(reason)}" for name, reason in failed)
        lines = [line for line in log.splitlines() if _ERROR_LINE.search(line) and not _NOISE.search(line)]
        return "\n".join(dict.fromkeys(lines)) or "\n".join(log.splitlines()[-20:])

    def _bytes_after(self, path: Path, offset: int) -> bytes:
        with suppress(OSError), path.open("rb") as file:
            if file.seek(0, 2) >= offset:  # else somebody emptied it
                file.seek(offset)
            else:
                file.seek(0)
            return file.read()
        return b""


def is_information(line: str) -> bool:
    return _INFORMATION.match(line) is not None


def is_trouble(line: str) -> bool:
    return bool(line.strip()) and not is_information(line) and not _NOISE.search(line)


def _unescaped(reason: str) -> str:
    """A message as it was before the log escaped it, without the Python backend's traceback."""
    with suppress(ValueError):
        reason = json.loads(f'"{reason}"')
    return reason.partition("\n\nAt:\n")[0]
