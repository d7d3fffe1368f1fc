"""The wire of quire/wire.h in Python: written from its description in wire_structs.h, not from its code.

A layout is a dict of a struct's members, ``[layout]`` of a vector's elements, ``?code`` of a value that may
be None, ``text`` or ``bytes`` of a string, or codes of the struct module.
"""

from __future__ import annotations

import struct
from typing import Any

MAGIC, VERSION = b"QUIR", 5
REQUESTS, READY, START_ERROR, STEP = 1, 2, 3, 4
FINISH_REASONS = ("", "stop", "length", "cancelled", "error", "deadline")

PARAMS: dict[str, Any] = {
    "n": "i",
    "max_tokens": "i",
    "min_tokens": "i",
    "temperature": "f",
    "top_p": "f",
    "top_k": "i",
    "min_p": "f",
    "presence_penalty": "f",
    "frequency_penalty": "f",
    "repetition_penalty": "f",
    "logit_bias": ["if"],
    "allowed_token_ids": ["i"],
    "bad_word_ids": [["i"]],
    "seed": "?q",
    "ignore_eos": "?",
    "skip_special_tokens": "?",
    "include_stop_str_in_output": "?",
    "stop": ["text"],
    "stop_token_ids": ["i"],
    "logprobs": "?i",
    "prompt_logprobs": "?i",
    "detokenize": "?",
    "stream_interval": "i",
    "cache_salt": "text",
}
NEW_REQUEST: dict[str, Any] = {
    "request_id": "Q",
    "prompt_ids": ["i"],
    "params": PARAMS,
    "priority": "i",
    "arrival_ns": "q",
    "tokenize_ns": "q",
    "deadline_ns": "q",
    "return_receipt": "?",
}
REQUESTS_FRAME = {"additions": [NEW_REQUEST], "cancellations": ["Q"]}
READY_FRAME = {
    "model": "text",
    "max_model_len": "i",
    "vocab_size": "i",
    "block_size": "i",
    "num_blocks": "i",
    "max_num_seqs": "i",
    "max_num_batched_tokens": "i",
    "defaults": PARAMS,
    "token_table": "bytes",
    "vocabulary": "text",
    "loaded": "text",
}
STATS = {
    "step": "Q",
    "num_running": "I",
    "num_waiting": "I",
    "num_free_blocks": "I",
    "num_blocks": "I",
    "num_preemptions": "Q",
    "prefix_cache_queries": "Q",
    "prefix_cache_hits": "Q",
    "num_prompt_tokens": "Q",
    "num_generation_tokens": "Q",
}
RELEASE = {
    "request_id": "Q",
    "index": "I",
    "ids_begin": "I",
    "num_ids": "I",
    "num_text_ids": "I",
    "trim": "i",
    "is_first": "?",
    "open_text": "I",
    "finish_reason": "B",
    "num_prompt_tokens": "I",
    "num_cached_tokens": "I",
    "timing_idx": "i",
    "error": "text",
    "stop_token_id": "i",
    "stop_string_idx": "i",
    "logprobs_idx": "i",
}
RELEASE_LOGPROBS = {
    "release_idx": "I",
    "begin": "I",
    "num_per_id": "I",
    "num_prompt_places": "I",
    "num_per_prompt_place": "I",
    "cumulative_logprob": "d",
}
RECEIPT = "80s"
STEP_FRAME = {
    "stats": STATS,
    "releases": [RELEASE],
    "token_ids": ["i"],
    "stop_strings": ["text"],
    "receipts": [RECEIPT],
    "logprobs": [RELEASE_LOGPROBS],
    "logprob_entries": ["ifi"],
}

# What a request has that leaves everything out.
DEFAULT_PARAMS: dict[str, Any] = {
    "n": 1,
    "max_tokens": 0,
    "min_tokens": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": [],
    "allowed_token_ids": [],
    "bad_word_ids": [],
    "seed": None,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "stop": [],
    "stop_token_ids": [],
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "stream_interval": 1,
    "cache_salt": "",
}
# Of a step in which nothing happens, and of a release that is no end and has no text.
NO_STATS = dict.fromkeys(STATS, 0)
NO_RELEASE: dict[str, Any] = dict.fromkeys(RELEASE, 0) | {
    "is_first": False,
    "timing_idx": -1,
    "error": "",
    "stop_token_id": -1,
    "stop_string_idx": -1,
    "logprobs_idx": -1,
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
    if layout[0] == "?" and len(layout) > 1:
        return b"\0" if value is None else b"\1" + write(layout[1:], value)
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
    if layout[0] == "?" and len(layout) > 1:
        is_given, at = payload[at], at + 1
        return _read(layout[1:], payload, at) if is_given else (None, at)
    values = struct.unpack_from("<" + layout, payload, at)
    return values[0] if len(values) == 1 else values, at + struct.calcsize("<" + layout)
