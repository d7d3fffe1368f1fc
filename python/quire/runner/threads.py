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


def num_gemm_threads(num_tokens: int, num_weights: int, num_threads: int) -> int:
    """Threads for GEMMs of `num_tokens` rows whose largest weight has `num_weights` elements: all, or one.

    Waking a sleeping thread takes some 20 us and a free core. It pays for what takes one thread much longer:
    about 4 MB of weights to stream, or 16 million multiply-adds.
    """
    is_large = num_weights >= 2_000_000 or num_tokens * num_weights >= 16_000_000
    return num_threads if is_large else 1
