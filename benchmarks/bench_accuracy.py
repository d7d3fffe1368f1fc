"""What formats of eight and four bits change: logits and greedy ids beside those of the plain weights.

    python benchmarks/bench_accuracy.py [--model quire-8m] [--prompts 8]

The model's weights, in bfloat16, are rounded to the nearest number of each format, without calibration, and
written to a folder as a checkpoint of that format, which is loaded and computed on the CPU as it is served,
in bfloat16. Logits are compared at every position of prompts, each with 128 tokens after it that the model
itself sampled, with those of the plain weights computed in float32: the row "bfloat16" is what the arithmetic
alone changes. Greedy ids are compared with the plain model's in bfloat16: how many are equal before the first
that differs, the mean over prompts. Prints a Markdown table, row by row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("common", "python/engine")]

from model_logits import logits_of, mean_kl, relative_norm  # noqa: E402
from quantized_checkpoints import quantize_folder  # noqa: E402
from quantized_forms import Form, awq, fp8_blocks, fp8_channels, packed_int4, packed_mxfp4  # noqa: E402
from quire import LLM, SamplingParams  # noqa: E402
from quire.model_path import resolve_model  # noqa: E402
from quire.models.weight_files import open_weights  # noqa: E402
from quire.tokenizer import Tokenizer  # noqa: E402

SAMPLED, GREEDY = 128, 64
TEXTS = (
    "def fibonacci(n):\n",
    "import os\nimport sys\n\n",
    "class Stack:\n    def push(self, item):\n",
    '"""Reads a file of settings."""\n',
    "The capital of France is",
    "Once upon a time there was",
    "for i in range(10):\n    print(",
    "Water boils at",
)


# Bits of a weight with its share of scales and zero points; a form; the size of groups, a divisor of rows.
FORMATS: dict[str, tuple[float, Form, int]] = {
    "fp8, a scale per output": (8, fp8_channels(), 1),
    "fp8, blocks of 128 x 128": (8, fp8_blocks(), 1),
    "mxfp4": (4.25, packed_mxfp4(), 32),
}
for size in (32, 64, 128):
    FORMATS[f"int4, groups of {size}, zero points"] = (4 + 24 / size, awq(size), size)
    FORMATS[f"int4, groups of {size}"] = (4 + 16 / size, packed_int4(size), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="quire-8m", help="a folder, smollm2, or an embedded model")
    parser.add_argument("--prompts", type=int, default=len(TEXTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.model, TEXTS[: options.prompts], Path(folder))


def measure(model: str, texts: tuple[str, ...], folder: Path) -> None:
    plain = in_bfloat16(resolve_model(model), folder / "bfloat16")
    tokenizer = Tokenizer(plain)
    prompts = [tokenizer.encode(text) for text in texts]
    sampled = LLM(str(plain), dtype="float32").generate(
        prompts,
        [SamplingParams(max_tokens=SAMPLED, seed=seed, ignore_eos=True) for seed in range(len(prompts))],
    )
    longer = [[*prompt, *each.outputs[0].token_ids] for prompt, each in zip(prompts, sampled, strict=True)]
    expected = logits_of(plain, longer, torch.float32)
    ids = greedy_ids(plain, prompts)

    columns = ("weights", "bits", "norm of logits", "KL, nats", f"greedy ids of {GREEDY}")
    print(f"{model}, {sum(map(len, longer))} positions\n")
    print(f"| {' | '.join(columns)} |\n|---{'|--:' * (len(columns) - 1)}|")

    def row(name: str, bits: float, checkpoint: Path) -> None:
        logits = logits_of(checkpoint, longer, torch.bfloat16)
        same = [num_equal(*pair) for pair in zip(greedy_ids(checkpoint, prompts), ids, strict=True)]
        norm, kl = relative_norm(logits, expected), mean_kl(logits, expected)
        print(f"| {name} | {bits:g} | {norm:.3f} | {kl:.4f} | {sum(same) / len(same):.0f} |", flush=True)

    row("bfloat16", 16, plain)
    config = json.loads((plain / "config.json").read_text())
    sizes = (config["hidden_size"], config["intermediate_size"])
    for name, (bits, form, group) in FORMATS.items():
        if any(size % group for size in sizes):
            continue
        quantized, _ = quantize_folder(
            plain, folder / "format", form.stored_as, config={"quantization_config": form.config}
        )
        row(name, bits, quantized)
        shutil.rmtree(folder / "format")


def in_bfloat16(source: Path, folder: Path) -> Path:
    """A copy whose weights are bfloat16, in a safetensors file whatever the source has."""
    weights = open_weights(source)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.gguf"))
    tensors = {name: weights.read(name).bfloat16().contiguous() for name in weights.headers}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def greedy_ids(checkpoint: Path, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    params = SamplingParams(temperature=0, max_tokens=GREEDY, ignore_eos=True)
    outputs = LLM(str(checkpoint), dtype="bfloat16").generate(prompts, params)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def num_equal(ids: tuple[int, ...], others: tuple[int, ...]) -> int:
    """How many are equal before the first that differs."""
    return next((i for i, pair in enumerate(zip(ids, others, strict=True)) if pair[0] != pair[1]), len(ids))


if __name__ == "__main__":
    main()
