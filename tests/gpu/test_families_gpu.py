"""Every architecture that is served, with random weights: bfloat16 on a GPU beside float32 on the CPU.

What the CPU computes is compared with transformers in tests/families; neither is needed here.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from llama_reference import save_tokenizer
from quire import LLM, SamplingParams
from quire.errors import UnsupportedModel
from quire.models.config import load_model_config
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.gpu

CONFIGS = Path(__file__).parent.parent / "families" / "configs"
SETTINGS: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,  # prompts come in chunks
    "num_gpu_blocks_override": 80,
}
NUM_OUTPUTS = 16


def one_of_each() -> list[str]:
    """A config of each architecture that is served, the first by name, and one with another head_dim."""
    first: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for file in sorted(CONFIGS.glob("*.json")):
            shutil.copy(file, Path(folder) / "config.json")
            with suppress(UnsupportedModel):
                load_model_config(Path(folder))
                first.setdefault(json.loads(file.read_text())["architectures"][0], file.stem)
    return [*first.values(), "llama-head-dim-80"]


def make_checkpoint(name: str, folder: Path) -> None:
    """Weights of bfloat16, so large that every layer matters to the logits and these lie apart."""
    shutil.copy(CONFIGS / f"{name}.json", folder / "config.json")
    save_tokenizer(folder)
    generator = torch.Generator().manual_seed(0)

    def weight(key: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1 and key.endswith(".weight"):
            return torch.rand(shape, generator=generator) + 0.5  # of a norm
        if len(shape) == 1 or key.endswith("bias"):
            return torch.randn(shape, generator=generator) * 0.2
        scale = 0.5 if "embed" in key or "wte" in key or "wpe" in key else 1.5 * shape[-1] ** -0.5
        return torch.randn(shape, generator=generator) * scale

    stored = load_model_config(folder).parameters(torch.float32).stored
    tensors = {key: weight(key, each.shape).bfloat16() for key, each in stored.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def logprobs_of(llm: LLM, tokens: list[list[int]]) -> Tensor:
    """Of each token of these prompts but their first."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    found = []
    for prompt, output in zip(tokens, llm.generate(tokens, params), strict=True):
        assert output.prompt_logprobs is not None
        places = zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
        found += [place[token].logprob for token, place in places if place is not None]
    return torch.tensor(found, dtype=torch.float64)


def generated(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """The prompts with what follows them, and the logprobs of all but their first tokens."""
    params = SamplingParams(
        max_tokens=NUM_OUTPUTS, ignore_eos=True, logprobs=0, prompt_logprobs=0, temperature=1, seed=3
    )
    tokens, found = [], []
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        ids = list(output.outputs[0].token_ids)
        assert output.prompt_logprobs is not None
        assert output.outputs[0].logprobs is not None
        places = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        tokens.append(prompt + ids)
        for token, place in zip(tokens[-1][1:], places, strict=True):
            assert place is not None
            found.append(place[token].logprob)
    return tokens, torch.tensor(found, dtype=torch.float64)


def errors(folder: Path, device: str) -> tuple[float, float]:
    """How far bfloat16 on the device, and on the CPU, is from float32 on the CPU, over all tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 600, (n,), generator=generator).tolist() for n in (1, 33, 90)]
    tokens, found = generated(LLM(str(folder), device=device, dtype="bfloat16", **SETTINGS), prompts)
    expected, on_cpu = (
        logprobs_of(LLM(str(folder), device="cpu", dtype=dtype, **SETTINGS), tokens)
        for dtype in ("float32", "bfloat16")
    )
    return (found - expected).norm().item(), (on_cpu - expected).norm().item()


@pytest.mark.parametrize("name", one_of_each())
def test_near_float32(name: str, tmp_path: Path) -> None:
    """Prompts in chunks and tokens after them are about as near to float32 as in bfloat16 on the CPU."""
    make_checkpoint(name, tmp_path)
    on_gpu, on_cpu = errors(tmp_path, "cuda")
    assert on_gpu <= 2 * on_cpu
