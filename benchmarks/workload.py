"""The load that every engine is measured with: the table of cases, its prompts, its figures.

Standard library only: processes that hold another engine import this file too, so that both sides run the
same requests and count alike.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# A format of weights or of the KV cache, and what both engines' settings say of it. A shape with its name at
# the end has the rows of the shape without.
FORMATS: dict[str, dict[str, Any]] = {"-fp8": {}, "-int4": {}, "-fp8kv": {"kv_cache_dtype": "fp8"}}
SHAPES = ("8b", "1b", "30b-a3b", "quire-8m", *(f"8b{name}" for name in FORMATS))
# The ids of prompts lie in [10, MAX_ID): below are the special ones.
MAX_ID = 128000
# The most of the engine's own rate that may arrive through Triton; what is above 1 is the noise of two runs.
MAX_SHARE = 1.05


@dataclass(frozen=True)
class Case:
    """A row of the table: `requests` requests, `concurrency` of them open at any time (closed loop)."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    shared_prefix_tokens: int  # the first of prompt_tokens, the same in all requests

    def __str__(self) -> str:
        shared = f", {self.shared_prefix_tokens} shared" if self.shared_prefix_tokens else ""
        return f"{self.prompt_tokens}/{self.output_tokens}{shared}, conc. {self.concurrency}"


WARM_UP = Case(512, 64, 32, 64, 0)
WARM_UP_CPU = Case(64, 8, 16, 16, 0)


def load_cases(shape: str, file: Path | None = None) -> list[Case]:
    """The shape's rows. Default: cases.json, and for the embedded model cases_cpu.json."""
    file = file or FOLDER / ("cases_cpu.json" if shape == "quire-8m" else "cases.json")
    table = json.loads(file.read_text("utf-8"))
    columns = tuple(Case.__dataclass_fields__)
    if tuple(table["columns"]) != columns:
        raise ValueError(f"{file}: columns: got {table['columns']}; allowed: {list(columns)}")
    shape, _ = base_and_format(shape)
    if shape not in table:
        raise ValueError(f"{file}: got the shape {shape!r}; allowed: {[k for k in table if k != 'columns']}")
    return [Case(*row) for row in table[shape]]


def base_and_format(shape: str) -> tuple[str, str]:
    """8b-fp8 -> 8b and -fp8; a shape in its model's own type has the format ""."""
    name = next((name for name in FORMATS if shape.endswith(name)), "")
    return shape.removesuffix(name), name


def settings_of_shape(shape: str) -> dict[str, Any]:
    """What both engines are told beside their own settings."""
    return FORMATS.get(base_and_format(shape)[1], {})


def warm_up(shape: str) -> Case:
    """Run before the rows, and not among them."""
    return WARM_UP_CPU if shape == "quire-8m" else WARM_UP


def prompts(case: Case, max_id: int = MAX_ID) -> list[list[int]]:
    """Token ids, random but the same each time: ``[requests][prompt_tokens]``."""
    rng = random.Random(case.prompt_tokens * 31 + case.output_tokens * 7 + case.concurrency)
    prefix = [rng.randrange(10, max_id) for _ in range(case.shared_prefix_tokens)]
    rest = case.prompt_tokens - case.shared_prefix_tokens
    return [prefix + [rng.randrange(10, max_id) for _ in range(rest)] for _ in range(case.requests)]


def fresh_cache_salt() -> str:
    """A cache salt for one run of a case, so that it finds no blocks that an earlier run of the same prompts
    left in the prefix cache. Both engines share cached blocks only among requests with equal salts."""
    return uuid.uuid4().hex


def percentile(values: Iterable[float], p: float) -> float:
    """The value at rank floor(p % of the count); NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] if ordered else float("nan")


@dataclass
class Record:
    """One request as its client saw it; seconds on one clock."""

    began: float
    first: float = 0.0
    last: float = 0.0
    num_tokens: int = 0
    gaps: list[float] = field(default_factory=list)  # between two answers, per token of the later one

    def add(self, now: float, num_new: int) -> None:
        """An answer with `num_new` tokens has come."""
        if not self.num_tokens:
            self.first = now
        elif num_new:
            self.gaps.append((now - self.last) / num_new)
        self.last = now
        self.num_tokens += num_new


def figures(tag: str, case: Case, seconds: float, records: Sequence[Record]) -> dict[str, Any]:
    """A row of results. Times in ms; rates in tokens per second over the whole case, with fill and drain."""
    first = [1e3 * (record.first - record.began) for record in records]
    gaps = [1e3 * gap for record in records for gap in record.gaps]
    tokens = sum(record.num_tokens for record in records)
    return {
        "tag": tag,
        **case_key(case),
        "s": round(seconds, 2),
        "out_tok_s": round(tokens / seconds, 1),
        "tot_tok_s": round((tokens + case.requests * case.prompt_tokens) / seconds, 1),
        "ttft_p50_ms": round(percentile(first, 50), 2),
        "ttft_p99_ms": round(percentile(first, 99), 2),
        "itl_p50_ms": round(percentile(gaps, 50), 3),
        "itl_p99_ms": round(percentile(gaps, 99), 3),
    }


def case_key(case: Case) -> dict[str, int]:
    """The case under the names of a row of results."""
    return dict(zip(("prompt", "out", "conc", "nreq", "shared"), asdict(case).values(), strict=True))


def same_case(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows of results are of the same case."""
    return all(row[name] == other[name] for name in ("prompt", "out", "conc", "nreq", "shared"))


def share_of_engine(row: dict[str, Any], engine: dict[str, Any]) -> float:
    """The rate through Triton over the engine's own. Raises ValueError above MAX_SHARE: with Triton around it
    the engine cannot be faster, so one of the two did less work, or found its prompts in the prefix cache."""
    share = round(float(row["out_tok_s"] / engine["out_tok_s"]), 3)
    check_share(row, share)
    return share


def check_share(row: dict[str, Any], share: float) -> None:
    if share > MAX_SHARE:
        case = f"{row['prompt']}/{row['out']} conc. {row['conc']} shared {row['shared']}"
        raise ValueError(f"{case}: of_engine: got {share}; allowed: at most {MAX_SHARE}")


def choose_rows(cases: Sequence[Case], rows: Sequence[int] | None) -> list[Case]:
    """The cases at these places of the table, in the order given; None: all."""
    if rows is None:
        return list(cases)
    for row in rows:
        if not 0 <= row < len(cases):
            raise ValueError(f"--rows: got {row}; allowed: 0 to {len(cases) - 1}")
    return [cases[row] for row in rows]


def check_complete(case: Case, records: Sequence[Record]) -> None:
    """A rate over requests that ended early would flatter."""
    wrong = [record.num_tokens for record in records if record.num_tokens != case.output_tokens]
    if wrong or len(records) != case.requests:
        raise RuntimeError(
            f"{case}: {len(records)} of {case.requests} requests, {len(wrong)} of them with other than"
            f" {case.output_tokens} tokens, such as {wrong[:3]}"
        )
