"""What one model of another backend becomes: what `quire migrate` shows and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire.migrate.findings import Findings


@dataclass(kw_only=True)
class Move:
    """One model under the names that clients call, `names`, of which the first begins those of its steps."""

    kind: str
    names: list[str]
    sources: list[Path]
    findings: Findings
    settings: dict[str, Any] = field(default_factory=dict)
    version: str = "1"
    # Names of the packaged models that it gets -> its own names for them.
    models: Mapping[str, str] = field(default_factory=dict)
    # Packaged models -> parameters that their config.pbtxt gets.
    parameters: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.names[0]
