"""How many CPU threads compute, and what they do while they wait for each other."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ThreadPolicy:
    """What torch's OpenMP threads do between the GEMMs of a step, and how large a GEMM must be to use all.

    A spinning thread is there for the next GEMM at once, but where cores are shared it keeps the one that it
    waits for from running. With OpenMP's default a step of 16 requests takes ten times as long on two busy
    cores.
    """

    spin_count: int  # rounds of spinning before a thread sleeps; 20,000 are a quarter of a millisecond
    min_gemm_work: int  # multiply-adds below which one thread computes alone

    def apply(self) -> None:
        """To be called before torch loads; later it changes nothing. Settings of the user's stay."""
        if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
            os.environ.setdefault("GOMP_SPINCOUNT", str(self.spin_count))

    def num_gemm_threads(self, num_tokens: int, num_weights: int, num_threads: int) -> int:
        """Threads, all or one, for GEMMs of `num_tokens` rows; the largest weight has `num_weights` elements.
        A large weight, about 4 MB, is streamed faster by all of them even for one row."""
        is_large = num_weights >= 2_000_000 or num_tokens * num_weights >= self.min_gemm_work
        return num_threads if is_large else 1


# The engine process: a server and its clients want the same cores.
SHARED_CORES = ThreadPolicy(spin_count=0, min_gemm_work=16_000_000)
# In process: the caller waits for the answer.
OWN_CORES = ThreadPolicy(spin_count=20_000, min_gemm_work=4_000_000)


def num_usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
