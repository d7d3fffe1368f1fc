"""Time of the GEMM for few rows beside torch's (cuBLAS), and its share of the card's memory bandwidth.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_gemm.py [--json FILE] [--sweep]
        [--weights fp8|fp8-blocks|int4|int4-zeros|mxfp4]

Each figure is the median of CUDA graph replays. Shapes: a graph holds calls of one shape that rotate over
weights of 256 MB or more, so that they come from device memory; bytes are the weight's. Steps: all GEMMs of a
decode step, each reading what the one before wrote, every layer with weights of its own, then the LM head;
torch gets no SiLU kernel there. --weights times weights of fewer bits (the head keeps 16), without torch.
--sweep times the ways to cut the work that SkinnyGemmTuning offers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from gemm_cases import skinny_gemm, tuning
from quire import ops
from quire.ops import gemm
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

# bytes/s that the card reads at most, measured
READ_LIMITS = {"NVIDIA H100 80GB HBM3": 3.08e12, "NVIDIA H200": 4.37e12}
ROTATE_BYTES = 256 << 20
DTYPE = torch.bfloat16
VOCAB_SIZE = 128256
MODELS = {
    "8B": {"hidden": 4096, "inter": 14336, "qkv": 6144, "layers": 32},
    "1B": {"hidden": 2048, "inter": 8192, "qkv": 3072, "layers": 16},
}
ROWS = (1, 8, 16, 24, 32, 40, 48, 56, 64)

Gemm = Callable[[str, Tensor, SkinnyWeight, Tensor], object]  # name of the shape, x, W, out


def shapes(model: str) -> dict[str, tuple[int, int, bool]]:
    """Name: n, k, silu_mul."""
    m = MODELS[model]
    hidden, inter = m["hidden"], m["inter"]
    return {
        "qkv": (m["qkv"], hidden, False),
        "o": (hidden, hidden, False),
        "gate_up": (2 * inter, hidden, True),
        "down": (hidden, inter, False),
        "lm_head": (VOCAB_SIZE, hidden, False),
    }


Make = Callable[[int, int, bool], SkinnyWeight]  # n, k, silu_mul


def random_weight(n: int, k: int, silu_mul: bool) -> SkinnyWeight:
    return SkinnyWeight(
        torch.empty((n, k), dtype=DTYPE, device="cuda").normal_(std=k**-0.5), silu_mul=silu_mul
    )


def float8_weight(n: int, k: int, silu_mul: bool, blocks: int = 1) -> SkinnyWeight:
    weight = torch.empty((n, k), dtype=DTYPE, device="cuda").normal_().to(torch.float8_e4m3fn)
    scale = torch.full((n, blocks), k**-0.5, device="cuda")
    if blocks == 1:
        scale = scale.flatten()
    return SkinnyWeight(ops.float8_columns(weight), silu_mul=silu_mul, scale=scale, dtype=DTYPE)


def float8_blocks_weight(n: int, k: int, silu_mul: bool) -> SkinnyWeight:
    return float8_weight(n, k, silu_mul, -(-k // 128))


def int4_weight(n: int, k: int, silu_mul: bool, *, has_zeros: bool = False) -> SkinnyWeight:
    """Groups of 128, the usual ones."""
    groups = (k // 128, n)
    scale = torch.full(groups, 0.2 * k**-0.5, dtype=DTYPE, device="cuda").t()
    zero = torch.full(groups, 8, dtype=torch.int16, device="cuda").t()
    return SkinnyWeight(
        random_bytes(n, k),
        silu_mul=silu_mul,
        scale=ops.by_group(scale),
        zero=ops.by_group(zero) if has_zeros else None,
    )


def int4_zeros_weight(n: int, k: int, silu_mul: bool) -> SkinnyWeight:
    return int4_weight(n, k, silu_mul, has_zeros=True)


def mxfp4_weight(n: int, k: int, silu_mul: bool) -> SkinnyWeight:
    scale = torch.full((n, k // 32), 0.25 * k**-0.5, dtype=DTYPE, device="cuda")
    return SkinnyWeight(random_bytes(n, k), silu_mul=silu_mul, scale=ops.by_group(scale), is_mxfp4=True)


def random_bytes(n: int, k: int) -> Tensor:
    return torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")


WEIGHTS: dict[str, Make] = {
    "bf16": random_weight,
    "fp8": float8_weight,
    "fp8-blocks": float8_blocks_weight,
    "int4": int4_weight,
    "int4-zeros": int4_zeros_weight,
    "mxfp4": mxfp4_weight,
}


def rows_of(weights: str) -> list[int]:
    return [rows for rows in ROWS if weights == "bf16" or rows <= gemm.MAX_WIDENED_ROWS]


def bytes_of(weight: SkinnyWeight) -> int:
    return weight.tensor.numel() * weight.tensor.element_size()


def microseconds(record: Callable[[], object], replays: int = 9) -> float:
    """Median time of a replay of what `record` launches."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        record()
        torch.cuda.synchronize()
        graph.capture_begin()
        record()
        graph.capture_end()
    torch.cuda.synchronize()
    times = []
    for i in range(replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times)


def ours(cuts: dict[str, Any] | None = None) -> Gemm:
    """cuts: tuning by the shape's name."""
    cuts = cuts or {}
    return lambda name, x, weight, out: skinny_gemm(x, weight, out=out, tuning=cuts.get(name))


def cublas(name: str, x: Tensor, weight: SkinnyWeight, out: Tensor) -> None:
    torch.mm(x, weight.tensor.t(), out=out)


class Shape:
    def __init__(self, n: int, k: int, silu_mul: bool, make: Make) -> None:
        self.weights = [make(n, k, silu_mul)]
        self.num_bytes = bytes_of(self.weights[0])
        self.k, self.n = k, n
        copies = max(2, -(-ROTATE_BYTES // self.num_bytes))
        self.weights += [make(n, k, silu_mul) for _ in range(copies - 1)]
        self.calls = -(-max(copies, 24) // copies) * copies if n < VOCAB_SIZE else copies

    def time(self, gemm: Gemm, rows: int, columns: int) -> float:
        x = torch.randn((rows, self.k), device="cuda").to(DTYPE)
        out = torch.empty((rows, columns), dtype=DTYPE, device="cuda")

        def record() -> None:
            for i in range(self.calls):
                gemm("", x, self.weights[i % len(self.weights)], out)

        return microseconds(record) / self.calls


class Step:
    """All GEMMs of a model's decode step."""

    def __init__(self, model: str, make: Make) -> None:
        self.hidden, self.inter = MODELS[model]["hidden"], MODELS[model]["inter"]
        kinds = shapes(model)
        head = kinds.pop("lm_head")
        self.layers = [[make(*kind) for kind in kinds.values()] for _ in range(MODELS[model]["layers"])]
        self.head = random_weight(*head)
        weights = [*itertools.chain(*self.layers), self.head]
        self.num_bytes = sum(map(bytes_of, weights))

    def time(self, gemm: Gemm, rows: int, fused: bool) -> float:
        def empty(n: int) -> Tensor:
            return torch.zeros((rows, n), dtype=DTYPE, device="cuda")

        x = torch.randn((rows, self.hidden), device="cuda").to(DTYPE)
        outs = [empty(weight.tensor.size(0)) for weight in self.layers[0]]
        if fused:
            outs[2] = empty(self.inter)
        logits = empty(VOCAB_SIZE)

        def record() -> None:
            hidden = x
            for qkv, o, gate_up, down in self.layers:
                gemm("qkv", hidden, qkv, outs[0])
                gemm("o", outs[0][:, : self.hidden], o, outs[1])
                gemm("gate_up", outs[1], gate_up, outs[2])
                gemm("down", outs[2][:, : self.inter], down, outs[3])
                hidden = outs[3]
            gemm("lm_head", hidden, self.head, logits)

        return microseconds(record)


def read_limit() -> float:
    return READ_LIMITS.get(torch.cuda.get_device_name(), READ_LIMITS["NVIDIA H100 80GB HBM3"])


def rate(num_bytes: int, us: float) -> str:
    return f"{us:8.2f} us {num_bytes / us / 1e6:5.2f} TB/s {num_bytes / us * 1e6 / read_limit():4.0%}"


def timed(name: str, num_bytes: int, us: float, torch_us: float | None) -> dict[str, object]:
    beside = "" if torch_us is None else f"   torch {rate(num_bytes, torch_us)}   x{torch_us / us:.2f}"
    print(f"{name}: {rate(num_bytes, us)}{beside}")
    return {"us": us} if torch_us is None else {"us": us, "torch_us": torch_us}


def time_shapes(models: Iterable[str], weights: str) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for model in models:
        for name, (n, k, silu_mul) in shapes(model).items():
            if name == "lm_head" and weights != "bf16":
                continue
            shape = Shape(n, k, silu_mul, WEIGHTS[weights])
            for rows in rows_of(weights):
                us = shape.time(ours(), rows, n // 2 if silu_mul else n)
                torch_us = shape.time(cublas, rows, n) if weights == "bf16" else None
                title = f"{model} {name:8} {n:6} x {k:5} rows {rows:2}"
                results.append(
                    {"model": model, "shape": name, "n": n, "k": k, "rows": rows}
                    | timed(title, shape.num_bytes, us, torch_us)
                )
    return results


def time_chains(models: Iterable[str], weights: str) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for model in models:
        step = Step(model, WEIGHTS[weights])
        for rows in rows_of(weights):
            us = step.time(ours(), rows, True)
            torch_us = step.time(cublas, rows, False) if weights == "bf16" else None
            results.append(
                {"model": model, "rows": rows}
                | timed(f"{model} step, rows {rows:2}", step.num_bytes, us, torch_us)
            )
    return results


def cuts(name: str) -> list[dict[str, int]]:
    """Ways to cut one shape's work."""
    all_cuts = []
    for parts, blocks_per_sm, in_flight in itertools.product((1, 2, 4), (2, 3), (1, 2, 3, 4)):
        if name in ("gate_up", "lm_head") and parts > 2:
            continue
        all_cuts.append({"parts": parts, "blocks_per_sm": blocks_per_sm, "in_flight": in_flight})
    return all_cuts


def sweep(models: Iterable[str], rows_to_time: Iterable[int], weights: str) -> list[dict[str, object]]:
    """One shape after the other, the cut that makes a step fastest, then when the next kernel may come."""
    results: list[dict[str, object]] = []
    for model in models:
        step = Step(model, WEIGHTS[weights])
        for rows in rows_to_time:
            best: dict[str, dict[str, int]] = {name: {} for name in shapes(model)}
            best_us = step.time(ours(), rows, True)
            print(f"{model} rows {rows:2} as it is: {rate(step.num_bytes, best_us)}")
            for name in shapes(model):
                triggers = [{"trigger": trigger} for trigger in (2, 4, 6, 8, 12)]
                for more in (*cuts(name), *triggers):
                    cut = best | {name: best[name] | more}
                    us = step.time(
                        ours({key: tuning("Skinny", **value) for key, value in cut.items()}), rows, True
                    )
                    print(f"{model} rows {rows:2} {name:8} {cut[name]}: {rate(step.num_bytes, us)}")
                    results.append({"model": model, "rows": rows, "shape": name, "cut": cut[name], "us": us})
                    if us < best_us * 0.999:
                        best, best_us = cut, us
            print(f"{model} rows {rows:2} best {best}: {rate(step.num_bytes, best_us)}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 64], help="of --sweep")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--weights", default="bf16", choices=list(WEIGHTS))
    args = parser.parse_args()
    results: dict[str, object] = {"device": torch.cuda.get_device_name(), "weights": args.weights}
    if args.sweep:
        most = max(rows_of(args.weights))
        rows_to_time = [rows for rows in args.rows if rows <= most]
        results["sweep"] = sweep(args.models, rows_to_time, args.weights)
    else:
        results["chains"] = time_chains(args.models, args.weights)
        results["shapes"] = time_shapes(args.models, args.weights)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
