"""Which storage each projection of a checkpoint has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from quire.models.formats.plain import PLAIN_STORAGE
from quire.models.spec import ProjectionKind
from quire.models.tensor_names import possible_names
from quire.models.weight_formats import Storage

Patterns = tuple[re.Pattern[str], ...]  # that match the whole name of a projection

# Scales of activations, which are computed for each token instead, zero points of what is symmetric, the
# order of columns where it is the usual one, and the weight's shape, which config.json tells.
_UNREAD = (
    *("*.input_scale", "*.activation_scale", "*.output_scale", "*.q_scale", "*.prob_scale"),
    *("*.weight_zero_point", "*.g_idx", "*.weight_g_idx", "*.weight_shape"),
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Projections that have one storage: all of some kinds, and those of some names, of any kind."""

    storage: Storage
    kinds: frozenset[ProjectionKind] = frozenset()
    names: Patterns = ()


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a checkpoint is quantised.

    method: vLLM's name for it; None: not at all. rules: the first that fits counts; what none fits is plain.
    plain: names of projections that are plain whatever the rules say. unread: patterns (* is anything) of
    names of tensors, beside those of every method, that may be present and that nothing reads.
    """

    method: str | None = None
    rules: tuple[Rule, ...] = ()
    plain: Patterns = ()
    unread: tuple[str, ...] = ()

    def storage_of(self, name: str, kind: ProjectionKind) -> Storage:
        """How the projection of this name is stored; "{}" in it is any expert."""
        if (name, kind) not in self._found:
            self._found[name, kind] = self._find(tuple(possible_names(name.replace("{}", "0"))), kind)
        return self._found[name, kind]

    def _find(self, names: tuple[str, ...], kind: ProjectionKind) -> Storage:
        if not _fit(names, self.plain):
            for rule in self.rules:
                if kind in rule.kinds or _fit(names, rule.names):
                    return rule.storage
        return PLAIN_STORAGE

    @cached_property
    def _found(self) -> dict[tuple[str, ProjectionKind], Storage]:
        return {}

    @property
    def ignored(self) -> tuple[str, ...]:
        """Patterns of all names of tensors that may be present and that nothing reads."""
        return (*_UNREAD, *self.unread) if self.method else ()


UNQUANTIZED = Quantization()


def _fit(names: Iterable[str], patterns: Patterns) -> bool:
    return any(pattern.fullmatch(name) for name in names for pattern in patterns)
