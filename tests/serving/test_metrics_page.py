"""docs/metrics.md, compared with a live server."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

from quire.triton.server import TritonServer

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_lists_every_series(server: TritonServer) -> None:
    """Name, kind and model of every series of ours on /metrics stand on the page, and no other."""
    with urllib.request.urlopen(server.metrics_url, timeout=60) as response:
        text = response.read().decode()
    kinds = dict(re.findall(r"^# TYPE ((?:vllm|quire):\w+) (\w+)$", text, re.MULTILINE))
    models = {
        name: {"tokenizer" if model.startswith("tokenizer") else model}
        for name, model in re.findall(r'^((?:vllm|quire):\w+)\{.*?model_name="(\w+)"', text, re.MULTILINE)
    }
    live = {(name, kind, *models[name]) for name, kind in kinds.items()}
    rows = re.findall(r"^\| `([\w:]+)` \| (\w+) \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert set(rows) == live
    assert len(rows) == len(live)
