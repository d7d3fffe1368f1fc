"""Hypothesis profiles: `full` is the default; `make test-fast` takes `fast`, with a tenth of the examples."""

from __future__ import annotations

import os

from hypothesis import settings

# Examples take as long as the machine is busy.
settings.register_profile("full", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("fast", settings.get_profile("full"), max_examples=10)
settings.load_profile("full")

# Read when torch loads. Tests share the cores, so each process has one thread, and more of them do not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
