"""Random checkpoints of the published configs in `configs/` (their keys, with small sizes), made by
transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other people's imports
    from transformers import AutoConfig, AutoModelForCausalLM

CONFIGS = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.json"))}


ABSENT = "<absent>"  # a key to be left out


def config_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(CONFIGS[name].read_text())
    return values


def make_checkpoint(name: str, folder: Path, **changes: Any) -> nn.Module | None:
    """Save a random model beside the config as published, but for `changes`; returns transformers' model, or
    None where transformers does not compute such a one."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in (config_of(name) | changes).items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old keys, which the published configs have
        try:
            model: nn.Module = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder), dtype=torch.float32, attn_implementation="eager"
            ).eval()
            model(torch.tensor([[5, 6]]))
        except (ValueError, TypeError, KeyError, RuntimeError, StrictDataclassError):
            return None
    _randomise(model)
    saved = folder / "saved"
    model.save_pretrained(saved)
    for file in saved.glob("*.safetensors*"):
        file.rename(folder / file.name)
    return model


def _randomise(model: nn.Module) -> None:
    """Weights with which greedy ids vary and logits lie apart; norms and biases that are not neutral."""
    generator = torch.Generator().manual_seed(0)

    def normal(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator) * scale

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name.lower() or name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
            if parameter.dim() == 1 and is_norm:
                around = 1.0 if parameter.float().mean() > 0.5 else 0.0
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5 + around)
            elif parameter.dim() == 1 or name.endswith("bias"):
                parameter.copy_(normal(parameter, 0.2))
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(normal(parameter, 0.5))
            else:
                parameter.copy_(normal(parameter, 1.5 / parameter.shape[-1] ** 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(normal(buffer, 0.2))
