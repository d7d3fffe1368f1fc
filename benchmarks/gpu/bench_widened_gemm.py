"""Time of the GEMM for more than 32 rows with weights of fewer bits beside the engine's in bfloat16.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_widened_gemm.py [--json FILE] [--cuts]

A call is RMSNorm and the projection, with another weight in each call, so that weights come from memory;
medians of CUDA graph replays, all sides in turns. "parts": the GEMM for few rows, 32 rows at a time. --cuts:
also every cut that is done in one round, the fastest two shown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_float8_gemm import plain_linears
from bench_gemm import DTYPE, MODELS, ROTATE_BYTES, WEIGHTS, bytes_of, shapes
from bench_split_gemm import capture, cuts_of
from bench_wide_gemm import in_turns
from gemm_cases import skinny_gemm, tuning, widened_gemm
from quire import ops
from quire.models.cuda.linear import CudaGateUp, CudaLinear, parts
from quire.ops import gemm
from quire.ops.gemm import SkinnyWeight
from torch import Tensor

ROWS = (40, 64, 72, 96, 128, 160, 192, 256, 384, 512, 1024, 2048, 4096)
SHAPES = ("qkv", "o", "gate_up", "down")

Call = Callable[[int], object]  # of the i-th weight


class Case:
    """One shape and number of rows."""

    def __init__(self, n: int, k: int, out_size: int, rows: int) -> None:
        self.hidden = torch.randn((rows, k), device="cuda").to(DTYPE)
        self.normed = torch.empty_like(self.hidden)
        self.norm_weight = torch.ones(k, dtype=DTYPE, device="cuda")
        self.gate_up = torch.empty((rows, n), dtype=DTYPE, device="cuda")
        self.out = torch.empty((rows, out_size), dtype=DTYPE, device="cuda")

    def call(self, multiply: Callable[[int, Tensor], object]) -> Call:
        def call(i: int) -> None:
            ops.rms_norm(self.hidden, self.norm_weight, 1e-5, out=self.normed)
            multiply(i, self.normed)

        return call

    def plain(self, linears: list[CudaLinear]) -> Call:
        def multiply(i: int, x: Tensor) -> None:
            linear = linears[i]
            if isinstance(linear, CudaGateUp):
                linear.silu_mul(x, self.gate_up, self.out)
            else:
                linear(x, self.out)

        return self.call(multiply)

    def widened(self, weights: list[SkinnyWeight], cut: dict[str, int]) -> Call:
        settings = {"tuning": tuning("Split", **cut)} if cut else {}
        return self.call(lambda i, x: widened_gemm(x, weights[i], out=self.out, **settings))

    def in_parts(self, weights: list[SkinnyWeight]) -> Call:
        def multiply(i: int, x: Tensor) -> None:
            for rows, to in parts(x, self.out, gemm.MAX_WIDENED_ROWS):
                skinny_gemm(rows, weights[i], out=to)

        return self.call(multiply)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuts", action="store_true")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--weights", default="int4", choices=[name for name in WEIGHTS if name != "bf16"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    args = parser.parse_args()
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    results: list[dict[str, object]] = []
    for model in args.models:
        for name in args.shapes:
            n, k, silu_mul = shapes(model)[name]
            weights = [WEIGHTS[args.weights](n, k, silu_mul)]
            num_calls = max(3, -(-ROTATE_BYTES // bytes_of(weights[0])))
            weights += [WEIGHTS[args.weights](n, k, silu_mul) for _ in range(num_calls - 1)]
            linears = plain_linears(n, k, silu_mul)
            for rows in args.rows:
                case = Case(n, k, weights[0].out_size, rows)
                sides = {"bf16": case.plain(linears), "widened": case.widened(weights, {})}
                sides["parts"] = case.in_parts(weights)
                for cut in cuts_of(n, rows, num_sms) if args.cuts else []:
                    sides[str(cut)] = case.widened(weights, cut)
                counts = [len(linears) if side == "bf16" else num_calls for side in sides]
                graphs = [capture(call, count) for call, count in zip(sides.values(), counts, strict=True)]
                times = dict(zip(sides, in_turns(graphs, 1, replays=5), strict=True))
                us = {side: times[side] / count for side, count in zip(sides, counts, strict=True)}
                shown = ["bf16", "widened", "parts", *sorted(list(us)[3:], key=us.__getitem__)[:2]]
                print(
                    f"{model} {args.weights} {name:8} {rows:5} rows: "
                    + "   ".join(f"{side} {us[side]:7.2f}" for side in shown)
                    + f"   {2 * rows * n * k / us['widened'] * 1e-6:5.0f} TFLOP/s",
                    flush=True,
                )
                results.append({"model": model, "shape": name, "rows": rows, "us": us})
            del weights, linears
    if args.json is not None:
        args.json.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
