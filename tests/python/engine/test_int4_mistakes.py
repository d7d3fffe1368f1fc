"""What is wrong with a four-bit checkpoint is named: file, tensor or key, what it is, what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quantized_checkpoints import (
    changed_tensor,
    loaded,
    quantize_folder,
    with_config,
    without_tensor,
    write_json,
)
from quantized_forms import INT4_FORMS, compressed
from quire.errors import ModelError

LLAMA = {"hidden_size": 160, "intermediate_size": 224}
FILE = "model.safetensors"
ROOT = "model.layers.1.mlp.up_proj"
MISTAKES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "three bits": ("GPTQ", with_config(bits=3), "quantization_config.bits: got 3; allowed: 4"),
    "eight bits": ("GPTQ", with_config(bits=8), "quantization_config.bits: got 8; allowed: 4"),
    "eight bits of some": (
        "GPTQ",
        with_config(dynamic={"+:.*up_proj": {"bits": 8}}),
        "quantization_config.dynamic.+:.*up_proj.bits: got 8; allowed: 4",
    ),
    "no expression": (
        "GPTQ",
        with_config(dynamic={"-:(": {}}),
        "quantization_config.dynamic.-:(: got ",
    ),
    "format of GPTQ": (
        "GPTQ",
        with_config(checkpoint_format="marlin"),
        'checkpoint_format: got "marlin"; allowed: "gptq", "gptq_v2"',
    ),
    "version of AWQ": ("AWQ", with_config(version="gemv"), 'version: got "gemv"; allowed: "gemm"'),
    "AWQ without zero points": (
        "AWQ",
        with_config(zero_point=False),
        "quantization_config.zero_point: got false; allowed: true",
    ),
    "no group": ("AWQ", with_config(group_size=0), "group_size: got 0; allowed: -1, or an integer in [8,"),
    "groups that do not divide": (
        "AWQ",
        with_config(group_size=64),
        "config.json: quantization_config.group_size: got 64; allowed: a divisor of 160, the inputs of "
        "model.layers.0.self_attn.q_proj",
    ),
    "other groups": (
        "AWQ",
        with_config(group_size=16),
        "model.layers.0.mlp.down_proj.qzeros: got shape [7, 20]; allowed: [14, 20]",
    ),
    "truncated scales": (
        "GPTQ",
        changed_tensor(f"{ROOT}.scales", lambda scales: scales[:3]),
        f"{FILE}: {ROOT}.scales: got shape [3, 224]; allowed: [5, 224]",
    ),
    "NaN": (
        "AWQ",
        changed_tensor(f"{ROOT}.scales", lambda scales: scales.index_fill(0, torch.tensor(1), float("nan"))),
        f"{FILE}: {ROOT}.scales: got nan; allowed: finite numbers",
    ),
    "no zero points": (
        "AWQ",
        without_tensor(f"{ROOT}.qzeros"),
        f"missing from the checkpoint: {ROOT}.qzeros",
    ),
    "no order": (
        "GPTQ act-order",
        without_tensor(f"{ROOT}.g_idx"),
        f"missing from the checkpoint: {ROOT}.g_idx",
    ),
    "a wrong order": (
        "GPTQ act-order",
        changed_tensor(f"{ROOT}.g_idx", lambda groups: groups.clamp(max=3)),
        f"{FILE}: {ROOT}.g_idx: got 64 inputs in group 3; allowed: 32",
    ),
    "zero points of what is symmetric": (
        "GPTQ",
        changed_tensor(f"{ROOT}.qzeros", lambda zeros: zeros + 1),
        f"{FILE}: {ROOT}.qzeros: got a zero point of 9; allowed: 8, as sym is true",
    ),
    "a plain weight": (
        "AWQ",
        changed_tensor(f"{ROOT}.qweight", lambda weight: weight.float()),
        f"{FILE}: {ROOT}.qweight: got dtype F32; allowed: I32",
    ),
    "int8 of compressed-tensors": (
        "compressed-tensors",
        with_config(**compressed("pack-quantized", num_bits=8)),
        "config_groups.group_0.weights.num_bits: got 8; allowed: 4",
    ),
    "another strategy": (
        "compressed-tensors",
        with_config(**compressed("pack-quantized", strategy="block")),
        'weights.strategy: got "block"; allowed: "group", "channel"',
    ),
    "mxfp4 of other groups": (
        "compressed-tensors mxfp4",
        with_config(**compressed("mxfp4-pack-quantized", type="float", group_size=16)),
        "weights.group_size: got 16; allowed: 32",
    ),
    "a scale that is no number": (
        "compressed-tensors mxfp4",
        changed_tensor(f"{ROOT}.weight_scale", lambda scale: torch.full_like(scale, 255)),
        f"{FILE}: {ROOT}.weight_scale: got 255, which is not a number; allowed: [0, 254]",
    ),
    "an odd number of outputs": (
        "AWQ",
        lambda folder: write_json(folder / "config.json", {"intermediate_size": 228}),
        "got 228 outputs; allowed: a multiple of 8",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_named(llama_folder: Callable[..., Path], tmp_path: Path, mistake: str) -> None:
    """Before anything is served."""
    name, spoil, expected = MISTAKES[mistake]
    form = INT4_FORMS[name]
    folder, _ = quantize_folder(
        llama_folder(**LLAMA), tmp_path, form.stored_as, config={"quantization_config": form.config}
    )
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        loaded(folder, torch.bfloat16)
    assert expected in str(caught.value)
