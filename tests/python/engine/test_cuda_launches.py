"""The launches of the CUDA executor, recorded without a GPU (recorded_launches.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
EXPECTED = (FOLDER / "llama_launches.txt").read_text().splitlines()


CONFIGS = {
    "llama": {},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 32,
        "mlp_bias": False,
        "attention_bias": False,
    },
    "experts": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "mlp_bias": False,
        "attention_bias": False,
        "intermediate_size": 256,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 64,
    },
    "float8": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
                    "input_activations": {
                        "num_bits": 8,
                        "type": "float",
                        "dynamic": True,
                        "strategy": "token",
                    },
                }
            },
        },
    },
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[str]]:
    """The launches with each of CONFIGS, from one process."""
    program = [sys.executable, str(FOLDER / "recorded_launches.py"), *map(json.dumps, CONFIGS.values())]
    lists = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split("\n\n")
    return dict(zip(CONFIGS, map(str.splitlines, lists), strict=True))


def test_llama_launches_what_it_always_did(recorded: dict[str, list[str]]) -> None:
    """Kernels, arguments, order and weights are those of the committed list."""
    lines = recorded["llama"]
    for number, (want, got) in enumerate(zip(EXPECTED, lines, strict=False), 1):
        assert want == got, f"llama_launches.txt:{number}"
    assert len(EXPECTED) == len(lines)


def test_qwen3_adds_nothing_but_its_norms(recorded: dict[str, list[str]]) -> None:
    """The launches are Llama's; only rope_and_cache is given the norms of the layer that it is in."""
    lines = recorded["qwen3"]
    norms = re.compile(r" (?:k_norm=(\S+)k_norm.weight\+0|q_norm=(\S+)q_norm.weight\+0|norm_eps=1e-06)")
    roots = []
    for number, line in enumerate(lines):
        if line.startswith("rope_and_cache "):
            k_norm, eps, q_norm = norms.findall(line)
            assert k_norm[0] == q_norm[1]
            assert eps == ("", "")
            roots.append(k_norm[0])
            lines[number] = norms.sub("", line)
    layers = ["model.layers.0.self_attn.", "model.layers.1.self_attn."]
    assert layers * (len(roots) // 2) == roots
    assert unbiased(EXPECTED) == unbiased(lines)


def test_experts_stay_in_their_places(recorded: dict[str, list[str]]) -> None:
    """Each layer routes, sorts, multiplies twice and adds up; a step makes no tensor and asks the device for
    nothing, so that a graph can hold it."""
    names = [line.split()[0] for line in recorded["experts"]]
    order = [name for name in names if name.startswith("moe_")]
    layer = ["moe_route", "moe_sort", "moe_gemm", "moe_gemm", "moe_combine"]
    assert layer * (len(order) // len(layer)) == order
    assert {name for name in names if name.startswith("torch.")} <= {"torch.mm", "torch.addmm"}


def unbiased(lines: list[str]) -> list[str]:
    """All cases but that of biases, which Qwen3's MLP cannot have."""
    kept, is_kept = [], True
    for line in lines:
        if line.startswith("# "):
            is_kept = not line.startswith("# biases")
        if is_kept:
            kept.append(line)
    return kept


def test_rows_are_quantized_where_they_are_written(recorded: dict[str, list[str]]) -> None:
    """With float8 weights: by the norm before qkv and gate_up, by a kernel of its own before o and down, in
    buffers. Fewer rows, and batch-invariant ones, keep their type."""
    names = {line.split()[0] for line in recorded["float8"]}
    assert {name for name in names if name.startswith("torch.")} <= {"torch.mm", "torch.addmm"}
    steps = "\n".join(recorded["float8"]).split("# ")[1:]
    for step in steps:
        title, *lines = step.splitlines()
        quantizes = "invariant" not in title and ": 4 " not in title and ": 12 " not in title
        makers, written = [], ""
        for line in lines:
            if made := re.search(r"^(norm|quantize_rows) .* out=(\S+) (?:out_scale|scale)=(\S+)", line):
                makers.append(made[1])
                written = f"x={made[2]} x_scale={made[3]}"
            elif " x_scale=" in line:
                assert line.endswith(written), line
        layers = 2 if ", 100 " in title else 1  # the last layer's is for the sampled rows alone, but for qkv
        if not quantizes:
            assert makers == [], title
        elif "odd" not in title:  # whose down projection has rows of no whole 16 bytes
            layer = ["norm", "quantize_rows", "norm", "quantize_rows"]
            assert makers == layer * layers + ["norm"] * (2 - layers), title
