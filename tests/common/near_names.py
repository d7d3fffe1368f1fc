"""Names that no field has, and the known one that an error offers: the same through every door."""

from __future__ import annotations

NEAR_NAMES: dict[str, str | None] = {
    "temprature": "temperature",
    "topk": "top_k",
    "max_token": "max_tokens",
    "max_newtokens": "max_new_tokens",  # another system's name
    "stopwords": "stop_words",
    "ignore_eso": "ignore_eos",
    "xyzzy": None,
    "té": None,
    "temperature" * 8: None,
}


def hint(name: str) -> str:
    """What the error says of an unknown name."""
    near = NEAR_NAMES[name]
    return "an unknown field" + (f' (did you mean "{near}"?)' if near else "")
