"""Every architecture that is served, and formats of weights, with random weights: bfloat16 on a GPU beside
float32 on the CPU.

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
from quire.models.checkpoint import load_checkpoint
from quire.models.config import load_model_config
from quire.models.parameters import Weights
from safetensors.torch import load_file, save_file
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
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
GROUP = {"targets": ["Linear"], "weights": FP8, "format": "float-quantized"}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": GROUP},
    "ignore": ["lm_head"],
}
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}
ACT_ORDER = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "channel"}
ROWS = CHANNEL | {"config_groups": {"group_0": GROUP | {"weights": INT4, "format": "pack-quantized"}}}
# A config, and its quantization_config.
QUANTIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8 tensor": ("llama3-8b", {"quant_method": "fp8"}),
    "fp8 channel": ("llama3-8b", CHANNEL),
    "fp8 block": ("qwen3-8b", BLOCK),
    "fp8 channel, rows in another order": ("command-r-cohere", CHANNEL),
    "fp8 block, experts": ("qwen3-moe", BLOCK),
    "int4 groups of 32": ("llama3-8b", AWQ),
    "int4 groups of 64": ("qwen3-8b", AWQ | {"group_size": 64}),
    "int4 rows": ("llama3-8b", ROWS),
    "int4 act-order": ("llama3-8b", ACT_ORDER),
    "int4, rows in another order": ("command-r-cohere", AWQ),
    "int4, experts": ("qwen3-moe", AWQ),
    "mxfp4, experts": ("gpt-oss-20b-bf16-sinks", {"quant_method": "mxfp4"}),
}


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


def make_checkpoint(name: str, folder: Path, **changes: Any) -> None:
    """Weights of bfloat16, or of the format's type, so large that every layer matters to the logits and
    these lie apart."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
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
    is_int4 = any(each.dtypes == ("I32",) for each in stored.values())
    tensors = {}
    for key, each in stored.items():
        if each.default is not None:
            continue
        if key.endswith("g_idx"):
            tensors[key] = (torch.randperm(each.shape[0], generator=generator) // 32).int()
        elif each.dtypes == ("I32",):
            tensors[key] = torch.randint(-(1 << 31), 1 << 31, each.shape, generator=generator).int()
        elif each.dtypes == ("U8",):
            low, high = (118, 120) if key.endswith("scales") else (0, 256)
            tensors[key] = torch.randint(low, high, each.shape, generator=generator).to(torch.uint8)
        elif key.endswith((".scales", ".weight_scale")) and each.dtypes is None and is_int4:
            tensors[key] = 0.02 * (torch.rand(each.shape, generator=generator) + 0.5).half()
        elif each.dtypes == ("F8_E4M3",):
            tensors[key] = (torch.randn(each.shape, generator=generator) * 64).to(torch.float8_e4m3fn)
        elif "_scale" in key:
            in_size = stored[key.partition("_scale")[0]].shape[-1]
            tensors[key] = 1.5 * in_size**-0.5 / 64 * (torch.rand(each.shape, generator=generator) + 0.5)
        else:
            tensors[key] = weight(key, each.shape).bfloat16()
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


def errors(folder: Path, device: str, **settings: Any) -> tuple[float, float]:
    """How far bfloat16 on the device with these settings, and on the CPU, is from float32 on the CPU, over
    all tokens."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 600, (n,), generator=generator).tolist() for n in (1, 33, 90)]
    settings |= SETTINGS | {"device": device, "dtype": "bfloat16"}
    tokens, found = generated(LLM(str(folder), **settings), prompts)
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


@pytest.mark.parametrize("form", QUANTIZED)
@pytest.mark.parametrize(("batch_invariant", "most"), [(True, 2), (False, 16)])
def test_quantized_near_float32(form: str, batch_invariant: bool, most: float, tmp_path: Path) -> None:
    """With 16-bit activations, which batch_invariant has in any batch, answers are as near to float32 as
    those of dequantised weights in bfloat16 on the CPU. Activations in float8 have four bits less: at most 16
    times as far."""
    name, quantization = QUANTIZED[form]
    make_checkpoint(name, tmp_path, quantization_config=quantization)
    on_gpu, on_cpu = errors(tmp_path, "cuda", batch_invariant=batch_invariant)
    assert on_gpu <= most * on_cpu


def test_scales_of_the_kv_cache(tmp_path: Path) -> None:
    """A float8 KV cache holds keys and values divided by the checkpoint's scales: with small ones answers are
    about as near to float32 as without any, and far from it with one that leaves only zeros."""
    name, quantization = QUANTIZED["fp8 channel"]
    found = {}
    for scale in (None, 2.0**-4, 2.0**20):
        make_checkpoint(name, tmp_path, quantization_config=quantization)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        for layer in range(load_model_config(tmp_path).spec.num_layers if scale else 0):
            for projection in ("k", "v"):
                tensors[f"model.layers.{layer}.self_attn.{projection}_scale"] = torch.tensor(scale)
        save_file(tensors, file)
        found[scale], _ = errors(tmp_path, "cuda", batch_invariant=True, kv_cache_dtype="fp8")
    assert 0.5 * found[None] < found[2.0**-4] < 2 * found[None]
    assert found[2.0**20] > 4 * found[None]


@pytest.mark.parametrize("form", QUANTIZED)
def test_weights_are_converted_as_on_a_cpu(form: str, tmp_path: Path) -> None:
    """What a GPU dequantises while loading has the bits of the CPU's."""
    name, quantization = QUANTIZED[form]
    make_checkpoint(name, tmp_path, quantization_config=quantization)
    table = load_model_config(tmp_path).parameters(torch.bfloat16)
    found = []
    for device in ("cpu", "cuda"):
        weights = Weights(table, torch.device(device))
        places = weights.places()
        load_checkpoint(tmp_path, places, table.ignored)
        found.append({key: place.views[0].cpu() for key, place in places.items()})
    for key, expected in found[0].items():
        assert torch.equal(found[1][key], expected), key
