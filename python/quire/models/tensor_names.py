"""What checkpoints call a model's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Naming(NamedTuple):
    """`root` of the model's names, and what stands there in a checkpoint."""

    root: str
    stored: str
    is_wrapped: bool = False  # a part of a multimodal model, whose other parts nobody reads

    def __call__(self, name: str) -> str:
        return self.stored + name.removeprefix(self.root) if name.startswith(self.root) else name

    def has(self, stored: str) -> bool:
        """Whether a tensor is of this part of its model."""
        return not self.is_wrapped or stored.startswith(self.stored)


# The one that fits most names counts, of equal ones the first.
NAMINGS = (
    Naming("", ""),
    Naming("model.", ""),  # saved from the model without its head
    Naming("transformer.", ""),
    Naming("", "language_model.", is_wrapped=True),
    Naming("model.", "model.language_model.", is_wrapped=True),
    Naming("model.", "language_model.", is_wrapped=True),
)


def possible_names(name: str) -> Iterator[str]:
    """Whatever a checkpoint may call it."""
    yield from dict.fromkeys(naming(name) for naming in NAMINGS)
