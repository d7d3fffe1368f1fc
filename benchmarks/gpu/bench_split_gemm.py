"""Time of the GEMM for some rows beside torch's (cuBLAS), each after a norm as in a step.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_split_gemm.py [--json FILE] [--cuts]

A call is RMSNorm and the projection, with another weight in each call, so that weights come from memory;
medians of CUDA graph replays, all sides in turns. --cuts: also every cut that is done in one round.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from bench_gemm import DTYPE, MODELS, ROTATE_BYTES, shapes
from bench_wide_gemm import in_turns
from gemm_cases import split_gemm, tuning
from quire import ops
from quire.ops.gemm import WideWeight
from torch import Tensor

ROWS = (72, 96, 128, 160, 192, 224, 256)


def capture(call: Callable[[int], None], num_calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        call(0)
        torch.cuda.synchronize()
        graph.capture_begin()
        for i in range(num_calls):
            call(i)
        graph.capture_end()
    torch.cuda.synchronize()
    return graph


def sides(
    weights: list[WideWeight], x: Tensor, out: Tensor, hidden: Tensor, cuts: list[dict[str, int]]
) -> list[Callable[[int], None]]:
    """cuBLAS, ours, ours with each cut."""
    normed = x if x.shape == hidden.shape else torch.empty_like(hidden)
    norm_weight = torch.ones(hidden.size(1), dtype=DTYPE, device="cuda")

    def cublas(i: int) -> None:
        ops.rms_norm(hidden, norm_weight, 1e-5, out=normed)
        torch.mm(x, weights[i].tensor.t(), out=out)

    def ours(cut: dict[str, int]) -> Callable[[int], None]:
        def call(i: int) -> None:
            ops.rms_norm(hidden, norm_weight, 1e-5, out=normed)
            split_gemm(x, weights[i], out=out, tuning=tuning("Split", **cut))

        return call

    return [cublas, *(ours(cut) for cut in [{}, *cuts])]


def cuts_of(n: int, rows: int, num_sms: int) -> list[dict[str, int]]:
    cuts = []
    for parts, columns, tile_rows in itertools.product((1, 2, 3), (64, 128), (96, 128)):
        blocks = -(-n // columns) * -(-rows // tile_rows) * parts
        if num_sms // 3 < blocks <= num_sms:
            cuts.append({"parts": parts, "columns": columns, "rows": tile_rows})
    return cuts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cuts", action="store_true")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    args = parser.parse_args()
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    results: list[dict[str, object]] = []
    for model in MODELS:
        for name in ("qkv", "o", "down"):
            n, k, _ = shapes(model)[name]
            num_calls = max(3, -(-ROTATE_BYTES // (2 * n * k)))
            weights = [
                WideWeight(torch.empty((n, k), dtype=DTYPE, device="cuda").normal_(std=k**-0.5))
                for _ in range(num_calls)
            ]
            for rows in args.rows:
                cuts = cuts_of(n, rows, num_sms) if args.cuts else []
                x = torch.randn((rows, k), device="cuda").to(DTYPE)
                hidden = torch.randn((rows, MODELS[model]["hidden"]), device="cuda").to(DTYPE)
                out = torch.empty((rows, n), dtype=DTYPE, device="cuda")
                graphs = [capture(side, num_calls) for side in sides(weights, x, out, hidden, cuts)]
                cublas, ours, *others = in_turns(graphs, num_calls, replays=5)
                by_cut = sorted(zip(others, map(str, cuts), strict=True))
                print(
                    f"{model} {name:5} {rows:4} rows: {ours:6.2f} us   cuBLAS {cublas:6.2f} us   "
                    f"x{cublas / ours:.2f}   " + "   ".join(f"{us:.2f} {cut}" for us, cut in by_cut[:2]),
                    flush=True,
                )
                results.append({"model": model, "shape": name, "rows": rows, "us": ours, "cublas_us": cublas})
    if args.json is not None:
        args.json.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
