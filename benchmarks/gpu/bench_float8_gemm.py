"""Time of the GEMMs with float8 operands beside torch's (cuBLAS, scales by row and channel) and the
engine's in bfloat16.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_float8_gemm.py [--json FILE] [--cuts]

A call is RMSNorm, which quantises its rows where the GEMM is a float8 one, and the projection, with another
weight in each call, so that weights come from memory; medians of CUDA graph replays, all sides in turns.
Errors are norms of the difference to float32 sums of the same operands. --cuts: also every cut (parts,
columns and rows of a tile, blocks on an SM) of the GEMM that cuts k that is done in one round.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_gemm import DTYPE, MODELS, ROTATE_BYTES, shapes
from bench_split_gemm import capture
from bench_wide_gemm import in_turns
from gemm_cases import dequantized, split_gemm, tuning, wide_gemm
from quire import ops
from quire.models.cuda.linear import CudaGateUp, CudaLinear
from quire.ops.gemm import WideWeight
from torch import Tensor

FEW_ROWS = 64
ROWS = (8, 16, 32, 48, 64, 72, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096)
SHAPES = ("qkv", "o", "gate_up", "down")

Call = Callable[[int], object]  # of the i-th weight


def random_weight(n: int, k: int, silu_mul: bool) -> WideWeight:
    weight = torch.empty((n, k), device="cuda").normal_().to(torch.float8_e4m3fn)
    scale = torch.full((n,), k**-0.5, device="cuda")
    return WideWeight(ops.float8_columns(weight), silu_mul=silu_mul, scale=scale, dtype=DTYPE)


class Case:
    """One shape and number of rows. Sides are calls of the i-th weight into `out`."""

    def __init__(self, weights: list[WideWeight], rows: int) -> None:
        n, k = weights[0].tensor.shape
        self.weights, self.silu_mul = weights, weights[0].silu_mul
        self.hidden = torch.randn((rows, k), device="cuda").to(DTYPE)
        self.normed = torch.empty_like(self.hidden)
        self.norm_weight = torch.ones(k, dtype=DTYPE, device="cuda")
        self.quantized = ops.quantize_rows(self.hidden)
        self.gate_up = torch.empty((rows, n), dtype=DTYPE, device="cuda")
        self.out = torch.empty((rows, weights[0].out_size), dtype=DTYPE, device="cuda")

    def float8(self, gemm: Callable[[ops.QuantizedRows, WideWeight], object]) -> Call:
        def call(i: int) -> None:
            values, scales = self.quantized
            ops.rms_norm(self.hidden, self.norm_weight, 1e-5, out=values, out_scale=scales)
            gemm(self.quantized, self.weights[i])

        return call

    def ours(self, gemm: Callable[..., Tensor], **cut: int) -> Call:
        settings = {"tuning": tuning("Split", **cut)} if cut else {}
        return self.float8(lambda x, weight: gemm(x, weight, out=self.out, **settings))

    def cublas(self, x: ops.QuantizedRows, weight: WideWeight) -> None:
        assert weight.scale is not None
        torch._scaled_mm(
            x.values,
            weight.tensor.t(),
            x.scales[:, None],
            weight.scale[None],
            out_dtype=DTYPE,
            use_fast_accum=True,
            out=self.gate_up,
        )
        if self.silu_mul:
            ops.act_mul(self.gate_up, self.out)

    def plain(self, linears: list[CudaLinear]) -> Call:
        def call(i: int) -> None:
            ops.rms_norm(self.hidden, self.norm_weight, 1e-5, out=self.normed)
            linear = linears[i]
            if isinstance(linear, CudaGateUp):
                linear.silu_mul(self.normed, self.gate_up, self.out)
            else:
                linear(self.normed, self.out)

        return call

    def error(self, call: Call, out: Tensor) -> float:
        """How far `out` is from float32, in its first rows and columns; for products without SiLU * mul."""
        call(0)
        weight = self.weights[0]
        assert weight.scale is not None
        some = ops.QuantizedRows(self.quantized.values[:64], self.quantized.scales[:64])
        w = dequantized(ops.QuantizedRows(weight.tensor[:512], weight.scale[:512]))
        wanted = dequantized(some).double() @ w.double().T
        return float((out[:64, :512].double() - wanted).norm() / wanted.norm())


def plain_linears(n: int, k: int, silu_mul: bool) -> list[CudaLinear]:
    kind = CudaGateUp if silu_mul else CudaLinear
    return [
        kind(torch.empty((n, k), dtype=DTYPE, device="cuda").normal_(std=k**-0.5))
        for _ in range(max(3, -(-ROTATE_BYTES // (2 * n * k))))
    ]


def cuts_of(n: int, rows: int, num_sms: int) -> list[dict[str, int]]:
    cuts = []
    for parts, columns, tile, per_sm in itertools.product((1, 2, 3, 4), (64, 128), (32, 64, 96, 128), (1, 2)):
        blocks = -(-n // columns) * -(-rows // tile) * parts
        fits_rows = tile <= FEW_ROWS and rows <= tile if per_sm == 2 or rows <= FEW_ROWS else tile > FEW_ROWS
        if fits_rows and num_sms // 3 < blocks <= per_sm * num_sms:
            cuts.append({"parts": parts, "columns": columns, "rows": tile, "blocks_per_sm": per_sm})
    return cuts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuts", action="store_true")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    args = parser.parse_args()
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    results: list[dict[str, object]] = []
    for model in args.models:
        for name in args.shapes:
            n, k, silu_mul = shapes(model)[name]
            num_calls = max(3, -(-ROTATE_BYTES // (n * k)))
            weights = [random_weight(n, k, silu_mul) for _ in range(num_calls)]
            linears = plain_linears(n, k, silu_mul)
            for rows in args.rows:
                case = Case(weights, rows)
                sides = {"bf16": case.plain(linears), "cublas": case.float8(case.cublas)}
                sides["wide"] = case.ours(wide_gemm)
                if not silu_mul or rows <= FEW_ROWS:
                    sides["split"] = case.ours(split_gemm)
                if not silu_mul:
                    for cut in cuts_of(n, rows, num_sms) if args.cuts else []:
                        sides[" ".join(map(str, cut.values()))] = case.ours(split_gemm, **cut)
                counts = [len(linears) if side == "bf16" else num_calls for side in sides]
                graphs = [capture(call, count) for call, count in zip(sides.values(), counts, strict=True)]
                times = dict(zip(sides, in_turns(graphs, 1, replays=5), strict=True))
                us = {side: times[side] / count for side, count in zip(sides, counts, strict=True)}
                errors = {"cublas": case.error(sides["cublas"], case.gate_up)}
                if not silu_mul:
                    errors["split"] = case.error(sides["split"], case.out)
                rate = 2 * rows * n * k / min(us[side] for side in us if side != "bf16") * 1e-6
                print(
                    f"{model} {name:8} {rows:5} rows: "
                    + "   ".join(f"{side} {value:7.2f}" for side, value in us.items())
                    + f"   {rate:5.0f} TFLOP/s   errors "
                    + ", ".join(f"{side} {error:.2e}" for side, error in errors.items()),
                    flush=True,
                )
                results.append({"model": model, "shape": name, "rows": rows, "us": us, "errors": errors})
            del weights, linears
    if args.json is not None:
        args.json.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
