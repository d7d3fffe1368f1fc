"""How many examples a random test draws."""

from __future__ import annotations

from hypothesis import settings


def examples(full: int) -> int:
    """`full` in the full profile, and as much less in another as its max_examples is."""
    per_hundred: int = settings.default.max_examples
    return max(1, full * per_hundred // 100)
