"""The wire of quire/wire.h in Python: the encoding is written from its description in wire_structs.h, not
from its code; which members a struct has, and their types, come from the core's lists.

A layout is a dict of a struct's members, ``[layout]`` of a vector's elements, ``(layout,)`` of a value that
may be None, ``text`` or ``bytes`` of a string, or codes of the struct module.
"""

from __future__ import annotations

import struct
from typing import Any

import _core_parts
from quire import _core

MAGIC, VERSION = b"QUIR", 7
REQUESTS, READY, START_ERROR, STEP = 1, 2, 3, 4
FINISH_REASONS = ("", "stop", "length", "cancelled", "error", "deadline")

REQUESTS_FRAME, READY_FRAME, STEP_FRAME = _core_parts.wire_layouts()
READY_FRAME["token_table"] = "bytes"
[NEW_REQUEST] = REQUESTS_FRAME["additions"]
PARAMS = NEW_REQUEST["params"]
STATS = STEP_FRAME["stats"]
[RELEASE] = STEP_FRAME["releases"]

# What a request has that leaves everything out.
DEFAULT_PARAMS: dict[str, Any] = {name: getattr(_core.SamplingParams(), name) for name in PARAMS}
# Of a step in which nothing happens, and of a release that is no end and has no text.
NO_STATS = dict.fromkeys(STATS, 0)
NO_RELEASE: dict[str, Any] = dict.fromkeys(RELEASE, 0) | {
    "usage": dict.fromkeys(RELEASE["usage"], 0),
    "is_first": False,
    "details": None,
}
NO_DETAILS: dict[str, Any] = {
    "error": "",
    "stop_token_id": -1,
    "stop_string": "",
    "timing": None,
    "num_per_id": 0,
    "num_per_prompt_place": 0,
    "cumulative_logprob": 0.0,
    "logprobs": [],
    "prompt_logprobs": [],
}


def frame(kind: int, payload: bytes, *, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    return struct.pack("<4sHHI", magic, version, kind, len(payload)) + payload


def write(layout: Any, value: Any) -> bytes:
    if isinstance(layout, dict):
        return b"".join(write(member, value[name]) for name, member in layout.items())
    if isinstance(layout, list):
        count = struct.pack("<I", len(value))
        if isinstance(layout[0], str) and len(layout[0]) == 1:
            return count + struct.pack(f"<{len(value)}{layout[0]}", *value)
        return count + b"".join(write(layout[0], element) for element in value)
    if layout in ("text", "bytes"):
        data = value.encode() if layout == "text" else value
        return struct.pack("<I", len(data)) + bytes(data)
    if isinstance(layout, tuple):
        return b"\0" if value is None else b"\1" + write(layout[0], value)
    return struct.pack("<" + layout, *(value if isinstance(value, tuple) else (value,)))


def read(layout: Any, payload: bytes) -> Any:
    """The value that is all of `payload`."""
    value, end = _read(layout, payload, 0)
    assert end == len(payload)
    return value


def _read(layout: Any, payload: bytes, at: int) -> tuple[Any, int]:
    if isinstance(layout, dict):
        members = {}
        for name, member in layout.items():
            members[name], at = _read(member, payload, at)
        return members, at
    if isinstance(layout, list):
        (count,), at = struct.unpack_from("<I", payload, at), at + 4
        if isinstance(layout[0], str) and len(layout[0]) == 1:
            code = f"<{count}{layout[0]}"
            return list(struct.unpack_from(code, payload, at)), at + struct.calcsize(code)
        elements = []
        for _ in range(count):
            element, at = _read(layout[0], payload, at)
            elements.append(element)
        return elements, at
    if layout in ("text", "bytes"):
        (size,), at = struct.unpack_from("<I", payload, at), at + 4
        data = payload[at : at + size]
        assert len(data) == size
        return data.decode() if layout == "text" else data, at + size
    if isinstance(layout, tuple):
        is_given, at = payload[at], at + 1
        return _read(layout[0], payload, at) if is_given else (None, at)
    values = struct.unpack_from("<" + layout, payload, at)
    return values[0] if len(values) == 1 else values, at + struct.calcsize("<" + layout)
