"""`quire migrate` in the test's own process."""

from __future__ import annotations

import json
from typing import Any

from quire.cli import app
from typer.testing import CliRunner


def migrate(*arguments: object) -> tuple[int, Any]:
    """Status, and what --json says, or the text where that is none."""
    result = CliRunner().invoke(app, ["migrate", "--json", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    try:
        return result.exit_code, json.loads(result.output)
    except ValueError:
        return result.exit_code, result.output
