"""Seconds from the start of a process to the first token of a checkpoint that lies in the page cache.

    python benchmarks/bench_load.py FOLDER [--shape 8b] [--sides quire vllm] [--vllm-path FOLDER]

FOLDER gets the shape's checkpoint with random weights in bfloat16, unless it has one; writing leaves it in
the page cache. Each side is a process of its own that has just been started, as after a crash or a rollout.
One JSON line per side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import word_model
from side_by_side import environment_of
from workload import SHAPES

SIDES = ("quire", "vllm")
PROMPT = list(range(10, 42))
SHARD_BYTES = 4 << 30


def write_weights(folder: Path) -> None:
    """The tensors that the folder's config asks for, in shards with an index."""
    import torch
    from quire.models.config import load_model_config
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = load_model_config(folder).parameters(torch.bfloat16).checkpoint_shapes
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def save() -> None:
        file = f"model-{len(set(index.values())):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in shapes.items():
        shard[name] = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=0.02).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            save()
    save()
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def first_token(side: str, folder: Path, settings: Mapping[str, object]) -> None:
    """Load the model, compute one token, say that it is there."""
    if side == "quire":
        from quire import LLM, SamplingParams

        LLM(str(folder), **settings).generate(PROMPT, SamplingParams(max_tokens=1))
    else:
        import vllm

        llm = vllm.LLM(str(folder), skip_tokenizer_init=True, **settings)
        llm.generate({"prompt_token_ids": PROMPT}, vllm.SamplingParams(max_tokens=1, detokenize=False))
    print("first token", flush=True)


def seconds_of(side: str, options: argparse.Namespace) -> float | None:
    """None where the process ends without a token."""
    command = [sys.executable, __file__, str(options.folder), "--only", side]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | environment_of(side, options)
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line == "first token\n":
                return round(time.monotonic() - began, 2)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--vllm-path", type=Path, help="the folder that vLLM is installed in")
    parser.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)  # in the process of a side
    options = parser.parse_args()
    if options.only:
        settings = {"max_model_len": 2048, "max_num_seqs": 256, "gpu_memory_utilization": 0.85}
        return first_token(options.only, options.folder, settings)
    if not list(options.folder.glob("*.safetensors")):
        word_model.make(options.shape, options.folder)
        write_weights(options.folder)
    num_bytes = sum(file.stat().st_size for file in options.folder.glob("*.safetensors"))
    for side in options.sides:
        seconds = seconds_of(side, options)
        print(json.dumps({"side": side, "gigabytes": round(num_bytes / 1e9, 2), "s": seconds}), flush=True)
    return None


if __name__ == "__main__":
    main()
