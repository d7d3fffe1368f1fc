"""Time of the GEMM for many rows beside torch's (cuBLAS), on random data.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_wide_gemm.py [--json FILE] [--seconds S]

gate_up: with SiLU * mul in the GEMM, beside cuBLAS and the kernel for SiLU * mul; other projections: the
GEMM alone. Each figure is the median of CUDA graph replays of a few calls, both sides in turns. --seconds
adds runs of that length, in which an H100 is held back by its power limit, with the clock and the power.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_gemm import DTYPE, MODELS, shapes
from gemm_cases import wide_gemm
from quire import ops
from quire.ops.gemm import WideWeight

ROWS = (32, 64, 128, 192, 256, 288, 320, 352, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 4096)
SUSTAINED_ROWS = (512, 2048)


def capture(call: Callable[[], object], num_calls: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        call()
        torch.cuda.synchronize()
        graph.capture_begin()
        for _ in range(num_calls):
            call()
        graph.capture_end()
    torch.cuda.synchronize()
    return graph


def elapsed_us(graph: torch.cuda.CUDAGraph, replays: int = 1) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / replays


def in_turns(graphs: list[torch.cuda.CUDAGraph], num_calls: int, replays: int = 7) -> list[float]:
    times = [[elapsed_us(graph) / num_calls for graph in graphs] for _ in range(replays + 1)][1:]
    return [statistics.median(each) for each in zip(*times, strict=True)]


def sustained(graph: torch.cuda.CUDAGraph, num_calls: int, seconds: float) -> dict[str, float]:
    """Microseconds per call, MHz and W over the second half of so many seconds."""
    replays = max(1, int(0.05 / (elapsed_us(graph) * 1e-6)))
    begin = time.monotonic()
    samples: list[tuple[float, float, float]] = []
    while time.monotonic() < begin + seconds:
        us = elapsed_us(graph, replays) / num_calls
        if time.monotonic() > begin + seconds / 2:
            samples.append((us, torch.cuda.clock_rate(), torch.cuda.power_draw() / 1000))
    us, mhz, watt = (statistics.mean(each) for each in zip(*samples, strict=True))
    return {"us": us, "mhz": mhz, "watt": watt}


def pair(n: int, k: int, rows: int, weight: WideWeight) -> list[Callable[[], object]]:
    """cuBLAS and ours."""
    x = torch.randn((rows, k), device="cuda").to(DTYPE)
    full = torch.empty((rows, n), dtype=DTYPE, device="cuda")
    out = torch.empty((rows, weight.out_size), dtype=DTYPE, device="cuda")
    transposed = weight.tensor.t()

    def cublas() -> None:
        torch.mm(x, transposed, out=full)
        if weight.silu_mul:
            ops.act_mul(full, out=out)

    return [cublas, lambda: wide_gemm(x, weight, out=out)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--shapes", nargs="+", default=["gate_up"])
    args = parser.parse_args()
    results: list[dict[str, object]] = []
    for model in args.models:
        for name, (n, k, silu_mul) in shapes(model).items():
            if name not in args.shapes:
                continue
            w = torch.empty((n, k), dtype=DTYPE, device="cuda").normal_(std=k**-0.5)
            weight = WideWeight(w, silu_mul=silu_mul)
            for rows in args.rows:
                num_calls = max(2, min(10, 4096 // rows))
                graphs = [capture(call, num_calls) for call in pair(n, k, rows, weight)]
                cublas_us, us = in_turns(graphs, num_calls)
                rate = 2 * rows * n * k / us * 1e-6
                print(
                    f"{model} {name:8} {rows:5} rows: {us:7.1f} us {rate:4.0f} TFLOP/s   "
                    f"cuBLAS {cublas_us:7.1f} us   x{cublas_us / us:.2f}",
                    flush=True,
                )
                result = {"model": model, "shape": name, "rows": rows, "us": us, "cublas_us": cublas_us}
                results.append(result)
                if args.seconds and rows in SUSTAINED_ROWS:
                    for side, graph in zip(("cublas", "ours"), graphs, strict=True):
                        result[side] = at = sustained(graph, num_calls, args.seconds)
                        print(
                            f"    sustained, {side:6}: {at['us']:7.1f} us at {at['mhz']:.0f} MHz, "
                            f"{at['watt']:.0f} W",
                            flush=True,
                        )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"device": torch.cuda.get_device_name(), "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
