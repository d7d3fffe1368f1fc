"""GGUF files: what the engine computes from one is what transformers computes from the same weights."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checkpoints import config_of, make_checkpoint
from gguf import GGMLQuantizationType, GGUFWriter
from gguf_files import write_gguf
from quire import LLM, SamplingParams
from quire.errors import ModelError, UnsupportedModel
from quire.fingerprint import LoadedFolder
from quire.gguf import weights as gguf_weights
from quire.gguf.config import model_config
from quire.gguf.header import TENSOR_TYPES, GgufHeader
from quire.gguf.weights import GgufFile
from quire.model_path import resolve_model
from quire.models.weight_files import open_weights
from random_llama import save_tokenizer
from test_parity import TOLERANCE, difference
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

GEMMA_2 = {"attention__sliding_window": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# A published config, the architecture's name in GGUF files, and what it has in addition.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2-7b": ("llama", {"rope__dimension_count": 32, "rope__freq_base": 10000.0}),
    "llama3.2-1b": ("llama", {"rope__dimension_count": 64, "rope__freq_base": 500000.0}),
    "mistral-7b-v0.3": ("llama", {"rope__freq_base": 1000000.0}),
    "qwen2.5-7b": ("qwen2", {"rope__freq_base": 1000000.0}),
    "qwen3-8b": ("qwen3", {"rope__freq_base": 1000000.0}),
    "phi-3-mini-4k": ("phi3", {"attention__sliding_window": 47, "rope__dimension_count": 32}),
    "gemma-2b": ("gemma", {}),
    "gemma2-2b": ("gemma2", GEMMA_2),
    "gemma3-1b": (
        "gemma3",
        {
            "attention__sliding_window": 32,
            "attention__sliding_window_pattern": 3,
            "rope__freq_base": 1000000.0,
        },
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(folder: Path, name: str, weights: str = "F32") -> tuple[torch.nn.Module, Path]:
    # RoPE is not stretched: the file has a tensor for that, see below.
    model = make_checkpoint(name, folder / "model", rope_scaling=None)
    assert model is not None
    save_tokenizer(folder / "model")
    architecture, metadata = ARCHITECTURES[name]
    write_gguf(folder / "small.gguf", architecture, folder / "model", model, weights, **metadata)
    return model, folder / "small.gguf"


def worst_difference(file: Path, model: torch.nn.Module) -> float:
    llm = LLM(str(file), dtype="float32", device="cpu", max_model_len=96, num_gpu_blocks_override=8)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=5, prompt_logprobs=5)
    prompt = [*range(5, 65)]
    (result,) = llm.generate([prompt], params)
    return difference(model, prompt, result)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_served_as_the_checkpoint_it_was_made_from(tmp_path: Path, name: str) -> None:
    """Names, order of rows, offsets of norms and config.json of each architecture, in float32."""
    model, file = written(tmp_path, name)
    assert worst_difference(file, model) < TOLERANCE


@pytest.mark.parametrize("weights", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_served_as_transformers_reads_it(tmp_path: Path, weights: str) -> None:
    """Numbers of each type are those that transformers makes of them."""
    model, file = written(tmp_path, "llama2-7b", weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy arrays that nobody writes to
        read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)
    model.load_state_dict({name: tensor.float() for name, tensor in read["tensors"].items()})
    assert worst_difference(file, model) < TOLERANCE


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> list[float]:
    """As llama.cpp's converter computes them."""
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        length = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(max((original / length - low) / (high - low), 0), 1)
        factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors


def test_factors_of_frequencies(tmp_path: Path) -> None:
    """Llama 3.1's stretched RoPE, which a file has as a tensor."""
    model = make_checkpoint("llama3.2-1b", tmp_path)
    assert model is not None
    save_tokenizer(tmp_path)
    config = config_of("llama3.2-1b")
    architecture, metadata = ARCHITECTURES["llama3.2-1b"]
    factors = llama3_factors(config["rope_scaling"], config["rope_theta"], config["head_dim"])
    file = tmp_path / "small.gguf"
    named = {"rope_freqs.weight": factors}
    write_gguf(file, architecture, tmp_path, model, factors=named, **metadata)
    (tmp_path / "model.safetensors").unlink()
    assert worst_difference(file, model) < TOLERANCE


def test_factors_of_two_lengths(tmp_path: Path) -> None:
    """Phi 4 mini's RoPE: factors for short and for long contexts, of a part of each head."""
    name = "phi-4-mini-partial-rotary-longrope"
    model = make_checkpoint(name, tmp_path)
    assert model is not None
    save_tokenizer(tmp_path)
    scaling = config_of(name)["rope_scaling"]
    write_gguf(
        tmp_path / "small.gguf",
        "phi3",
        tmp_path,
        model,
        factors={f"rope_factors_{kind}.weight": scaling[f"{kind}_factor"] for kind in ("short", "long")},
        rope__dimension_count=2 * len(scaling["short_factor"]),
        rope__scaling__original_context_length=config_of(name)["original_max_position_embeddings"],
    )
    assert worst_difference(tmp_path / "small.gguf", model) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "block_size"), [("Q2_K", 256), ("Q3_K", 256), ("Q4_K", 256), ("Q5_K", 256), ("Q6_K", 256)]
)
def test_blocks_of_256(tmp_path: Path, kind: str, block_size: int) -> None:
    """Numbers of the types that only llama.cpp writes are those that transformers makes of the same bytes."""
    judge = pytest.importorskip("transformers.integrations.gguf.dequant", reason="transformers before 5.23")
    [(number, each)] = [(number, each) for number, each in TENSOR_TYPES.items() if each.name == kind]
    assert each.block_size == block_size
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 60, (4 * 3, each.num_bytes), dtype=np.uint8)  # small: scales are finite
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("output.weight", blocks.reshape(4, -1), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GgufFile(tmp_path / "x.gguf").read("lm_head.weight")
    expected = judge.dequantize(torch.from_numpy(blocks).flatten(), number)
    assert torch.equal(read, expected.reshape(4, -1))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "baichuan"}, 'general.architecture: got "baichuan"; allowed: llama, qwen2, '),
    ({"expert_count": 8}, "llama.expert_count: got 8; allowed: 0"),
    (
        {"rope__scaling__unheard_of": 2},
        "llama.rope.scaling.unheard_of: got 2; allowed: a file without it",
    ),
]


@pytest.mark.parametrize(("change", "expected"), REFUSED)
def test_what_is_not_known_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """An architecture or a key that may change what is computed is named, with the file."""
    model = make_checkpoint("llama2-7b", tmp_path / "model")
    assert model is not None
    save_tokenizer(tmp_path / "model")
    file = tmp_path / "small.gguf"
    write_gguf(file, **{"architecture": "llama", "folder": tmp_path / "model", "model": model} | change)
    with pytest.raises(UnsupportedModel) as error:
        resolve_model(str(file))
    assert str(error.value).startswith(f"{file}: {expected}")


def test_a_file_that_is_replaced(tmp_path: Path) -> None:
    """The folder of a file is made once; another file at the same path has another, and the load of the first
    is not continued with it."""
    _, file = written(tmp_path, "llama2-7b")
    folder = resolve_model(str(file))
    loaded = LoadedFolder.of(folder)
    assert resolve_model(str(file)) == resolve_model(str(folder)) == folder
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "small.gguf").symlink_to(file)
    (tmp_path / "alone" / "mmproj-small.gguf").touch()
    assert resolve_model(str(tmp_path / "alone")) == folder
    loaded.check()
    written(tmp_path, "llama2-7b", "F16")
    assert resolve_model(str(file)) != folder
    with pytest.raises(ModelError, match="got other files"):
        loaded.check()


def test_parts_of_a_model(tmp_path: Path) -> None:
    """A file that is one of several says how they are joined."""
    metadata = {"general.architecture": "llama", "split.count": 2}
    header = GgufHeader(file=tmp_path / "x.gguf", metadata=metadata, tensors={})
    with pytest.raises(
        UnsupportedModel, match=r"split\.count: got 2; allowed: 1: `llama-gguf-split --merge`"
    ):
        model_config(header, lambda name: [])


def test_the_package_that_reads_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, quantized weights are refused with the extra's name, and plain ones are served."""
    monkeypatch.setattr(gguf_weights, "find_spec", lambda name: None)
    _, file = written(tmp_path, "llama2-7b", "Q8_0")
    with pytest.raises(UnsupportedModel, match=r"got Q8_0 weights, .*; allowed: pip install 'quire\[gguf\]'"):
        open_weights(resolve_model(str(file)))
    written(tmp_path, "llama2-7b", "F16")
    open_weights(resolve_model(str(file)))


def test_a_damaged_file(tmp_path: Path) -> None:
    """Whatever byte is missing or changed, a file is read or refused with its name."""
    _, file = written(tmp_path, "llama2-7b", "Q8_0")
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(content[: 20_000 if generator.integers(2) else None])
        for place in generator.integers(0, 20_000, 3):
            data[place] = generator.integers(256)
        file.write_bytes(data)
        try:
            GgufFile(file)
        except ModelError as error:
            assert str(error).startswith(str(file))  # noqa: PT017 - it need not be refused
