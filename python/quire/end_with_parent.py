"""Ends a process when its parent ends, whatever ended the parent: the kernel sends it SIGKILL, which reaches
a process that is stopped or hangs, too.

Run as a program, ``python end_with_parent.py PARENT COMMAND...``: arranges that and becomes COMMAND. It
imports nothing of this package, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Ends this process at once when `parent`, its parent process, has ended already.

    The kernel takes the end of the *thread* that started this process for the end of the parent, so that
    thread must last as long.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    end_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
