"""A scrape of /metrics, read by Prometheus' own parser."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Page:
    """What one scrape says."""

    text: str

    @classmethod
    def scrape(cls, url: str) -> Page:
        with urllib.request.urlopen(url, timeout=120) as response:
            return cls(response.read().decode())

    def samples(self) -> list[Any]:
        return [sample for family in text_string_to_metric_families(self.text) for sample in family.samples]

    def ours(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Values of vllm: and quire: series by name and labels; no series comes twice."""
        found = {}
        for sample in self.samples():
            if sample.name.startswith(("vllm:", "quire:")):
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in found, key
                found[key] = float(sample.value)
        return found

    def value(self, name: str, **labels: str) -> float:
        """The sum over the series of that name that have these labels; at least one has."""
        values = [
            value
            for (own, given), value in self.ours().items()
            if own == name and labels.items() <= set(given)
        ]
        assert values, f"no series {name} with {labels}"
        return sum(values)

    def kinds(self) -> dict[str, str]:
        """The types of our families by name."""
        lines = (line.split() for line in self.text.splitlines() if line.startswith("# TYPE "))
        return {name: kind for _, _, name, kind in lines if name.startswith(("vllm:", "quire:"))}
