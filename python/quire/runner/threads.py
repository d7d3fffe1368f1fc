"""How many CPU threads compute, and what they do while they wait for each other."""

from __future__ import annotations

import os
import sys


def sleep_while_waiting() -> None:
    """Let torch's OpenMP threads sleep, not spin, at the end of a parallel region; to be called before torch
    loads.

    A core is shared with the server, its clients and our own kernels' threads. A spinning thread keeps the
    one that it waits for from running: on two busy cores a step of 16 requests then takes ten times as long.
    A setting of the user's stays.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
