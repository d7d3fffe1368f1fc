"""Hypothesis profiles: `full` is the default; `make test-fast` takes `fast`, with a tenth of the examples."""

from __future__ import annotations

from hypothesis import settings

# Examples take as long as the machine is busy.
settings.register_profile("full", deadline=None, max_examples=100, print_blob=True)
settings.register_profile("fast", settings.get_profile("full"), max_examples=10)
settings.load_profile("full")
