"""Requests with wild values, and what the schema says each must be answered with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from field_cases import FIELD_CASES
from quire.errors import InvalidArgument
from quire.sampling_params import NAMES, NOT_YET, OPTION_FIELDS, SAMPLING_FIELDS
from quire.tokenizer import Tokenizer
from quire.triton.tokenizer_stage import ParsedRequest, parse_request

PROMPTS = ["def fibonacci(n):", "import os\n", "class Straße:", "# 敏捷 👍🏽\n", "x = 1\n" * 40, "e\u0301"]
EOS = 1  # of the model
MAX_TOKENS = 4  # of requests that are answered: what is tested is how they are read
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    4,
    5,
    240,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    10**30,
]
NUMBERS += [0.0, -0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 1e-50, 1e308, float("nan"), float("inf"), -float("inf")]
STRINGS = ["", "0", "1", "-1", "0.5", "1e5", "1e999", "nan", "true", "null", " 1", "１", "[1, 2]", '["a"]']
STRINGS += [
    "[[1]]",
    "[1, 99999999]",
    "{}",
    "[" * 5000,
    "ß",
    "\u0000",
    "👩‍👩‍👧‍👦",
    "1" * 400,
    "x" * 50_000,
    "\u202e",
    '{"3": 1.5}',
    '{"3": 1, "3": 2}',
    "[[3, 1.5]]",
    "the",
    "x" * 1024,
]
LISTS = [
    [],
    [1],
    [1.5],
    [True],
    [None],
    [""],
    ["a"],
    [["a"]],
    [-1],
    [2**40],
    ["a", 1],
    ["\ud800"],
    ["x" * 999],
]
LISTS += [list(range(300)), ["a"] * 300, {}, {"a": 1}, {"": {"": [{}]}}, None, True, False]
LISTS += [
    {"3": 1.5, "40": -100},
    {"3": 100.5},
    {"99999999": 1},
    {"-1": 1},
    {"3": "1"},
    [[3, 1.5]],
    [[3, 1], [3, 2]],
]
LISTS += [[5, 6, 7], [5, 99999999], ["the", " the"], [f"w{i}" for i in range(70)], {"3": [1]}, [[3, None]]]
DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]
ANY = [*NUMBERS, *STRINGS, *LISTS, DEEP]
NAMES_NEAR = [
    "temprature",
    "max_token",
    "Top_k",
    "top-k",
    "stop ",
    "seed\u200b",
    "топ_k",
    "",
    "a b",
    "x" * 300,
    "🌡",
]
KNOWN_NAMES = [*SAMPLING_FIELDS, *(alias for f in NAMES.fields.values() for alias in f.aliases), *NOT_YET]
MALFORMED = [
    "",
    " ",
    "{",
    "[]",
    "null",
    "5",
    '"x"',
    '{"top_k": 1, "top_k": 1}',
    "NaN",
    '{"top_k": NaN}',
    "{'a': 1}",
]
MALFORMED += [
    "[" * 100_000,
    '{"stop": ' * 3000,
    "\ufeff{}",
    '{"seed": 1' + "0" * 5000 + "}",
    "{}\n{}",
    "\u0000",
    "{}}",
]

RAW = [
    b"",
    b"{",
    b"[]",
    b"5",
    b"\xff\xfe",
    b'{"text_input"',
    b'{"max_tokens": 1}',
    b'{"text_input": "x", "top_k": 1e999}',
]
RAW += [
    b'{"text_input": "x", "text_input": "y"}',
    b'{"text_input": "\\ud800"}',
    b"[" * 500,
    b'{"a": ' * 500,
    b"\0" * 99,
]


# Inputs of the ensemble: top-level keys may be lists.
LIST_TENSORS = {name: str if f.type == "strings" else int for name, f in NAMES.fields.items() if f.is_list}
# Fields that change nothing about a greedy answer without an end of its own.
HARMLESS = {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "cache_salt"}
HARMLESS |= {"include_stop_str_in_output", "skip_special_tokens", "stream_interval", "priority"}
HARMLESS |= {"logprobs", "prompt_logprobs", "deadline_ms"}
PATIENCE_MS = 60_000  # a deadline that is never passed


@dataclass
class Case:
    """A body for generate. `error`: what the answer must contain; "" for a good request. `status_only`: the
    server refuses the JSON itself, before any model sees it."""

    body: bytes
    error: str = ""
    status_only: bool = False
    expects: tuple[str, int] | None = None  # prompt and max_tokens whose greedy text is the answer
    stream: bool = False
    n: int = 1


class CaseMaker:
    """Cases from one seed; `tokenizer`, `max_model_len`, `vocab_size` are the model's."""

    def __init__(self, seed: str, tokenizer: Tokenizer, max_model_len: int, vocab_size: int) -> None:
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size

    def make(self) -> Case:
        """The next case; one that would generate for long is drawn anew."""
        makers: list[Callable[[], Case | None]] = [self.good, self.parameter, self.parameter, self.nested]
        makers += [self.nested, self.combined, self.malformed, self.option, self.text]
        if self.rng.random() < 0.03:
            return Case(self.rng.choice(RAW), status_only=True)
        while True:
            case = self.rng.choice(makers)()
            if case is not None:
                return case

    def base(self) -> dict[str, Any]:
        return {
            "text_input": self.rng.choice(PROMPTS),
            "exclude_input_in_output": True,
            "max_tokens": self.rng.randint(1, MAX_TOKENS),
            "temperature": 0,
        }

    def name(self) -> str:
        return self.rng.choice(NAMES_NEAR if self.rng.random() < 0.2 else KNOWN_NAMES)

    def good(self) -> Case | None:
        return self.judge(self.base())

    def parameter(self) -> Case | None:
        """One wild request parameter: a top-level key that is no tensor."""
        name, value = self.name(), self.rng.choice(ANY)
        if name in OPTION_FIELDS or _has_surrogate(value):
            return None
        base = self.base()
        if name in LIST_TENSORS:
            return self.list_tensor(base, name, value)
        if isinstance(value, (list, dict)) or value is None:
            # Triton itself takes no such values, and names the parameter.
            return Case(_json(base | {name: value}), error=f"parameter '{name}' has invalid type")
        return self.judge(base | {name: value})

    def list_tensor(self, base: dict[str, Any], name: str, value: object) -> Case | None:
        """A list that is an input of the ensemble: Triton's JSON reader refuses elements of another type."""
        if not isinstance(value, list) or not value or any(isinstance(item, list) for item in value):
            return None  # it may be taken for a list, as Triton does with numbers in lists of lists
        kind = LIST_TENSORS[name]
        if all(type(item) is kind for item in value):
            fits = kind is str or all(-(2**31) <= item < 2**31 for item in value)
            return self.judge(base | {name: value}) if fits else None
        return Case(_json(base | {name: value}), status_only=True)

    def nested(self) -> Case | None:
        """Up to three wild fields in sampling_parameters."""
        base, inner = self.base(), {}
        for name in ("max_tokens", "temperature"):
            if self.rng.random() < 0.5:
                inner[name] = base.pop(name)
        for _ in range(self.rng.randint(1, 3)):
            name = self.name()
            good = NAMES.fields[name].default if name in NAMES.fields and self.rng.random() < 0.3 else None
            inner[name] = self.rng.choice(ANY) if good is None else good
        return self.judge(base | {"sampling_parameters": json.dumps(inner)})

    def combined(self) -> Case | None:
        """Several fields with good values, and sometimes one with a bad one."""
        names = self.rng.sample(sorted(FIELD_CASES), self.rng.randint(2, 6))
        inner = {name: FIELD_CASES[name].good for name in names}
        bad = [name for name in names if FIELD_CASES[name].bad]
        if bad and self.rng.random() < 0.3:
            name = self.rng.choice(bad)
            inner[name] = self.rng.choice(FIELD_CASES[name].bad)
        base = {name: value for name, value in self.base().items() if name not in inner}
        return self.judge(base | {"sampling_parameters": json.dumps(inner)})

    def malformed(self) -> Case | None:
        return self.judge(self.base() | {"sampling_parameters": self.rng.choice(MALFORMED)})

    def option(self) -> Case | None:
        """Inputs of the ensemble that are tensors: what is no boolean is refused by Triton's JSON reader."""
        name = self.rng.choice(OPTION_FIELDS)
        value = self.rng.choice([True, False, True, False, *ANY])
        if not isinstance(value, bool):
            fits = isinstance(value, list) and value == [True]
            return (
                None
                if fits or _has_surrogate(value)
                else Case(_json(self.base() | {name: value}), status_only=True)
            )
        return self.judge(self.base() | {name: value})

    def text(self) -> Case | None:
        """Wild prompts: empty, far too long, of odd characters, no text at all, no UTF-8."""
        base = self.base()
        value = self.rng.choice([*STRINGS, "x = 1\n" * 3000, "\ufffd\ufeff", "\x7f\x1b[0m", *LISTS, 5, None])
        if isinstance(value, str):
            return self.judge(base | {"text_input": value})
        if value is None or isinstance(value, (bool, int, dict)):
            return Case(_json(base | {"text_input": value}), status_only=True)
        broken = _json(base | {"text_input": "MARK"}).replace(b"MARK", b"ab\xff")
        return Case(broken, error="text_input: got invalid UTF-8 at byte 2 (0xff)")

    def judge(self, body: dict[str, Any]) -> Case | None:
        """What the tokenizer stage's own reader says of `body`."""
        if body["text_input"] == "" and self.rng.random() < 0.9:
            return None  # one of them says it
        tensors, parameters = {}, {}
        for name, value in body.items():
            if name in ("text_input", "sampling_parameters"):
                tensors[name] = np.array([value.encode("utf-8", "surrogatepass")], dtype=object)
            elif name in LIST_TENSORS:
                is_text = LIST_TENSORS[name] is str
                items = [item.encode() if is_text else item for item in value]
                tensors[name] = np.array(items, dtype=object if is_text else np.int32)
            elif name in OPTION_FIELDS:
                tensors[name] = np.array([value])
            else:
                parameters[name] = _as_triton_hands_it_on(value)
        try:
            parsed = parse_request(tensors, parameters)
            self.check_model_limits(parsed)
        except InvalidArgument as error:
            # Triton writes the numbers of request parameters in its own way.
            exact = "sampling_parameters" in tensors and set(parameters) <= {"max_tokens", "temperature"}
            message = str(error) if exact else f"{error.field}: got "
            return Case(_json(body), error=message, stream=body.get("stream") is True)
        given = parsed.given
        if given.get("n", 1) > 8 or given.get("deadline_ms", PATIENCE_MS) < PATIENCE_MS:
            return None
        if given.get("priority"):
            return None  # a matter of the server's policy
        if not 1 <= given.get("max_tokens", 2**31) <= MAX_TOKENS:
            return None
        case = Case(_json(body), stream=parsed.options.stream, n=given.get("n", 1))
        is_plain = given.keys() <= HARMLESS and given.get("temperature") == 0
        if is_plain and not parsed.options.includes_prompt and parsed.prompts[0] in PROMPTS:
            case.expects = (parsed.prompts[0], given["max_tokens"])
        return case

    def check_model_limits(self, parsed: ParsedRequest) -> None:
        prompt = parsed.prompts[0]
        assert isinstance(prompt, str)
        self.tokenizer.bad_word_ids(parsed.given.get("bad_words", ()))
        special = {"add_special_tokens": parsed.given.get("add_special_tokens", True)}
        [ids] = self.tokenizer.encode_batch([prompt], **special)
        limit = parsed.given.get("truncate_prompt_tokens")
        if limit is not None:
            limit = self.max_model_len - 1 if limit == -1 else limit
            ids = self.tokenizer.truncate(prompt, ids, limit, **special)
        num_tokens = len(ids)
        if not 0 < num_tokens < self.max_model_len:
            raise InvalidArgument("text_input", f"{num_tokens} tokens", "fewer")
        ids = {name: parsed.given.get(name, ()) for name in ("allowed_token_ids", "stop_token_ids")}
        ids = {"logit_bias": [token for token, _ in parsed.given.get("logit_bias", ())], **ids}
        for name, tokens in ids.items():
            for token in tokens:
                if token >= self.vocab_size:
                    raise InvalidArgument(name, str(token), f"0 to {self.vocab_size - 1}")
        forbidden = {word[0] for word in self.tokenizer.bad_word_ids(parsed.given.get("bad_words", ()))}
        if parsed.given.get("min_tokens"):
            forbidden |= {*parsed.given.get("stop_token_ids", ()), EOS}
        if ids["allowed_token_ids"] and forbidden.issuperset(ids["allowed_token_ids"]):
            given = (
                "only tokens that are forbidden (bad_words forbids its words, min_tokens the end-of-sequence"
            )
            given += " and stop tokens)"
            raise InvalidArgument("allowed_token_ids", given, "at least one token that may come first")


def _as_triton_hands_it_on(value: object) -> object:
    """Integers past 64 bits are floats, and its strings are C's: a NUL ends them."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value.split("\0")[0] if isinstance(value, str) else value


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=True).encode()


def _has_surrogate(value: object) -> bool:
    return "\\ud800" in json.dumps(value) if not isinstance(value, str) else False
