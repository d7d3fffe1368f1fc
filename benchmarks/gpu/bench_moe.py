"""Time of a layer's experts on a GPU, all five launches, and the rates that it comes to.

    PYTHONPATH=python:benchmarks/gpu python benchmarks/gpu/bench_moe.py

Each figure is the median of CUDA graph replays over layers with weights of their own, so that weights come
from device memory. Tokens choose experts at random. The bytes are those of the weights of
the experts that are chosen; the operations those of both GEMMs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_layers import DTYPE, microseconds
from quire import ops

# num_experts, top_k, hidden_size, intermediate_size
SHAPES = {
    "Qwen3-30B-A3B": (128, 8, 2048, 768),
    "gpt-oss-20b": (32, 4, 2880, 2880),
    "Mixtral 8x7B": (8, 2, 4096, 14336),
}
TOKENS = (1, 8, 64, 256, 2048)
NUM_LAYERS = 4


def main() -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {DTYPE}")
    print(f"{'model':>14} {'tokens':>6} {'experts':>7} {'us':>9} {'TB/s':>6} {'TFLOP/s':>8}")
    for name, (num_experts, top_k, hidden_size, intermediate_size) in SHAPES.items():
        expert_size = 3 * hidden_size * intermediate_size
        gate_up, down = (
            torch.empty(NUM_LAYERS, num_experts, out, inner, dtype=DTYPE, device="cuda").normal_(
                std=inner**-0.5
            )
            for out, inner in ((2 * intermediate_size, hidden_size), (hidden_size, intermediate_size))
        )
        for num_tokens in TOKENS:
            workspace = ops.MoeWorkspace(
                num_experts=num_experts,
                top_k=top_k,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                max_num_tokens=num_tokens,
                dtype=DTYPE,
                device=torch.device("cuda"),
            )
            x, out = (torch.randn(num_tokens, hidden_size, dtype=DTYPE, device="cuda") for _ in range(2))
            logits = torch.randn(num_tokens, num_experts, dtype=DTYPE, device="cuda")
            routed = workspace.ids, workspace.weights
            layers = iter(range(1 << 30))

            def make() -> Callable[[], object]:
                layer = next(layers) % NUM_LAYERS  # noqa: B023
                weights = {"gate_up": gate_up[layer], "down": down[layer]}  # noqa: B023

                def call() -> object:
                    ops.moe_route(logits, top_k=top_k, out=routed)  # noqa: B023
                    return ops.moe_mlp(x, *routed, out=out, workspace=workspace, **weights)  # noqa: B023

                return call

            ids, _ = ops.moe_route(logits, top_k=top_k)
            num_used = len(set(ids.flatten().tolist()))
            num_bytes = 2 * num_used * expert_size
            us = microseconds(make, num_bytes)
            flops = 2 * num_tokens * top_k * expert_size
            print(
                f"{name:>14} {num_tokens:6d} {num_used:7d} {us:9.1f} {num_bytes / us / 1e6:6.2f} "
                f"{flops / us / 1e6:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
