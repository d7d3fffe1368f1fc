"""Paged attention beside the card's limits: decode in TB/s, prompts in TFLOP/s, mixed and skewed batches.

Each figure is the median over replays of a CUDA graph of launches that take turns over several caches, so
that keys and values come from memory and not from the L2 cache.

    python benchmarks/gpu/bench_attention.py [--only decode|prefill|batch|plan] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/kernels/gpu"))
from attention_case import make_batch
from quire import ops

# H100 SXM: read and write of a large copy, and a large bf16 matrix product, both measured.
MEMORY_TBS = 3.08
MATRIX_TFLOPS = 798
ROTATED_BYTES = 256 << 20  # several times the L2 cache


def microseconds(launch: Callable[[int], None], launches: int, replays: int = 15) -> float:
    """Time of one launch; launch(i) enqueues number i of `launches`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            launch(i)
    times = []
    for i in range(replays + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)


@dataclass
class Batch:
    """A step over a paged cache with shuffled blocks; `copies` block tables name distinct blocks."""

    lens: list[tuple[int, int]]  # query_len, seq_len
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 16
    kv_dtype: torch.dtype = torch.bfloat16
    num_layers: int = 4  # of the KV memory; one of them is read

    def __post_init__(self) -> None:
        blocks = [-(-s // self.block_size) for _, s in self.lens]
        per_token = 2 * self.num_kv_heads * self.head_dim * self.kv_dtype.itemsize
        self.kv_bytes = sum(s for _, s in self.lens) * per_token
        self.copies = max(1, min(64, -(-ROTATED_BYTES // self.kv_bytes)))
        num_blocks = sum(blocks) * self.copies
        shape = (num_blocks, self.num_layers, 2, self.block_size, self.num_kv_heads, self.head_dim)
        kv_memory = torch.randn(shape, dtype=torch.bfloat16, device="cuda").to(self.kv_dtype)
        self.cache = ops.KVCache(kv_memory[:, 0])
        ids = torch.randperm(num_blocks, device="cuda").int()
        self.tables = torch.zeros(self.copies, len(self.lens), max(blocks), dtype=torch.int32, device="cuda")
        first = 0
        for copy in range(self.copies):
            for i, n in enumerate(blocks):
                self.tables[copy, i, :n] = ids[first : first + n]
                first += n
        starts = [0]
        for q, _ in self.lens:
            starts.append(starts[-1] + q)

        def to_gpu(x: list[int]) -> Tensor:
            return torch.tensor(x, dtype=torch.int32, device="cuda")

        geometry = (
            to_gpu([len(self.lens)]),
            to_gpu(starts),
            to_gpu([s for _, s in self.lens]),
            torch.arange(len(self.lens), dtype=torch.int32, device="cuda"),
        )
        width = self.num_q_heads * self.head_dim
        self.query = torch.randn(starts[-1], width, dtype=torch.bfloat16, device="cuda")
        self.out = torch.empty_like(self.query)
        self.attention = ops.PagedAttention(
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_num_seqs=max(256, len(self.lens)),
            max_num_tokens=max(8192, starts[-1]),
            max_seq_len=max(s for _, s in self.lens),
            device=torch.device("cuda"),
        )
        max_query_len = max(q for q, _ in self.lens)
        self.batches = [make_batch(self.query, tables, geometry, max_query_len) for tables in self.tables]
        self.attention.plan(self.batches[0])

    @property
    def flops(self) -> float:
        """Operations on visible keys."""
        visible = sum(q * (s - q) + q * (q + 1) / 2 for q, s in self.lens)
        return 4.0 * self.num_q_heads * self.head_dim * visible

    @property
    def bytes(self) -> int:
        return self.kv_bytes + 2 * 2 * self.query.numel()

    def run(self, i: int, *, follows_layer: bool = False) -> None:
        batch = self.batches[i % self.copies]
        self.attention(self.query, self.cache, batch, self.out, follows_layer=follows_layer)

    def time(self, *, follows_layer: bool = False) -> float:
        launches = max(self.copies, min(64, int(2e9 / self.kv_bytes)), 1)
        if self.flops > 1e11:
            launches = max(1, min(launches, int(2e12 / self.flops)))
        return microseconds(lambda i: self.run(i, follows_layer=follows_layer), launches)


def bench_decode(report: list[dict[str, object]]) -> None:
    """behind: each launch may begin while the one in front ends, as a layer's attention behind the
    kernel that writes its keys."""
    print("decode, block 16, 32 q / 8 kv heads; alone | behind", flush=True)
    shapes = [(batch, 600) for batch in (1, 8, 32)] + [(batch, 640) for batch in (64, 256)]
    shapes += [(batch, context) for context in (1024, 4096) for batch in (1, 8, 64, 256)]
    for kv_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        for head_dim in (128, 64):
            for batch, context in shapes:
                b = Batch([(1, context)] * batch, head_dim=head_dim, kv_dtype=kv_dtype)
                alone, behind = b.time(), b.time(follows_layer=True)
                floor = b.bytes / MEMORY_TBS / 1e6
                name = "bf16" if kv_dtype == torch.bfloat16 else "fp8"
                print(
                    f"  {name:4} hd {head_dim:3} {batch:3} x {context:4}:{alone:8.1f} us {floor / alone:4.0%}"
                    f" | {behind:8.1f} us {floor / behind:4.0%}  (floor {floor:.1f} us)",
                    flush=True,
                )
                shape = [name, batch, context, head_dim]
                report.append({"decode": shape, "alone_us": alone, "behind_us": behind, "floor_us": floor})


def bench_prefill(report: list[dict[str, object]]) -> None:
    print("prefill, causal, bf16, block 16, 32 q / 8 kv heads; sdpa: torch, contiguous", flush=True)
    for head_dim, tokens in [(d, n) for d in (128, 64) for n in (1024, 2048, 4096, 8192, 16384)]:
        b = Batch([(tokens, tokens)], head_dim=head_dim)
        us = b.time()
        tflops = b.flops / us / 1e6
        q = b.query.view(1, tokens, 32, head_dim).transpose(1, 2)
        k = torch.randn(1, 8, tokens, head_dim, dtype=torch.bfloat16, device="cuda")
        k = k.repeat_interleave(4, dim=1)
        v = torch.randn_like(k)

        def sdpa(_: int, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        other = microseconds(sdpa, 4, replays=7)
        print(
            f"  hd {head_dim:3} {tokens:5}: {us:7.1f} us {tflops:4.0f} TFLOP/s {tflops / MATRIX_TFLOPS:4.0%}"
            f"   sdpa {other:8.1f} us {b.flops / other / 1e6:5.0f}",
            flush=True,
        )
        report.append({"prefill": [tokens, head_dim], "us": us, "tflops": tflops, "sdpa_us": other})


def bench_batch(report: list[dict[str, object]]) -> None:
    print("other batches, 32 q / 8 kv heads x 128", flush=True)
    decodes = [(1, 4096)] * 31
    batches = {
        "31 decodes at 4k": decodes,
        "chunk of 2k": [(2048, 2048)],
        "31 decodes and the chunk": [*decodes, (2048, 2048)],
        "1 x 128k + 31 x 4k": [(1, 131072), *decodes],
        "63 x 4k (equal bytes)": [(1, 4096)] * 63,
        "chunk of 256 at 16k": [(256, 16384)],
        "chunk of 512 at 8k": [(512, 8192)],
        "16 prompts of 512": [(512, 512)] * 16,
    }
    for name, lens in batches.items():
        b = Batch(lens)
        us = b.time()
        print(
            f"  {name}: {us:8.1f} us  {b.bytes / us / 1e6:.2f} TB/s  {b.flops / us / 1e6:.0f} TFLOP/s",
            flush=True,
        )
        report.append({"batch": name, "us": us})


def bench_plan(report: list[dict[str, object]]) -> None:
    print("plan", flush=True)
    cases = {
        "1 decode": [(1, 1024)],
        "256 decodes": [(1, 1024 + i) for i in range(256)],
        "63 decodes and a chunk of 2k": [*[(1, 4096)] * 63, (2048, 2048)],
    }
    for name, lens in cases.items():
        b = Batch(lens)
        us = microseconds(lambda _, b=b: b.attention.plan(b.batches[0]), 64)
        print(f"  {name}: {us:.1f} us", flush=True)
        report.append({"plan": name, "us": us})


def main() -> None:
    parts = {"decode": bench_decode, "prefill": bench_prefill, "batch": bench_batch, "plan": bench_plan}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(0))
    report: list[dict[str, object]] = []
    for name, part in parts.items():
        if arguments.only is None or name in arguments.only:
            part(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
