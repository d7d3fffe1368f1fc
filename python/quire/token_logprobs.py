"""Log probabilities as callers of `quire.LLM` read them: of each place a dict, made when it is read.

Kept as dicts, those of hundreds of requests are millions of objects, and Python's garbage collector stops the
engine for tenths of a second to go through them (benchmarks/bench_llm.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from quire import _core

Place = TypeVar("Place", covariant=True)


class Logprob(NamedTuple):
    """A token at one place of the text: of the model's own probabilities, before any sampling parameter."""

    logprob: float
    rank: int  # 1: the likeliest
    decoded_token: str


# One place, by token id: the token that stands there first, then the likeliest ones in order.
TokenLogprobs: TypeAlias = "dict[int, Logprob]"


class _Places(Sequence[Place]):
    """Equal to any sequence with the same elements; pickled and copied as a tuple."""

    def __init__(self, entries: npt.NDArray[np.void], table: _core.TokenTable) -> None:
        """entries: [places, 1 + n], of `_core.Release.logprobs`."""
        self._entries = entries
        self._table = table

    @abstractmethod
    def _place(self, index: int) -> Place: ...

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Place, ...]: ...
    def __getitem__(self, index: int | slice) -> Place | tuple[Place, ...]:
        at = range(len(self))[index]
        return self._place(at) if isinstance(at, int) else tuple(self._place(i) for i in at)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (tuple(self),)

    def _entry(self, row: int) -> TokenLogprobs:
        decode = self._table.decode
        return {
            token: Logprob(logprob, rank, decode([token], False, 0, False))
            for token, logprob, rank in self._entries[row].tolist()
            if token >= 0
        }


class OutputLogprobs(_Places[TokenLogprobs]):
    """Logprobs of each generated token."""

    @classmethod
    def joined(cls, parts: Sequence[npt.NDArray[np.void]], table: _core.TokenTable) -> OutputLogprobs:
        """Logprobs of one or more releases, in order."""
        # Joined as bytes: np.concatenate takes 100 times as long over arrays of records.
        entries = np.frombuffer(b"".join(part.data for part in parts), parts[0].dtype)
        return cls(entries.reshape(-1, parts[0].shape[1]), table)

    def __len__(self) -> int:
        return len(self._entries)

    def _place(self, index: int) -> TokenLogprobs:
        return self._entry(index)


class PromptLogprobs(_Places["TokenLogprobs | None"]):
    """Logprobs of each token of the prompt; None for the first, which nothing predicts."""

    def __len__(self) -> int:
        return 1 + len(self._entries)

    def _place(self, index: int) -> TokenLogprobs | None:
        return self._entry(index - 1) if index else None
