"""The core's refusals as our own exception: one class for callers to catch, whoever found the mistake."""

from __future__ import annotations

from quire import _core
from quire.errors import InvalidArgument


def invalid_argument(error: _core.InvalidArgument, where: str = "") -> InvalidArgument:
    """Its message with another name; `where` comes before the field's name. Reads
    "<field>: got <given>; allowed: <allowed>"."""
    _, _, rest = str(error).partition(": got ")
    given, _, allowed = rest.partition("; allowed: ")
    return InvalidArgument(where + error.field, given, allowed)
