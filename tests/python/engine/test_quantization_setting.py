"""The setting `quantization`: what a checkpoint must be, or becomes while it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quantized_checkpoints import change_tensors, fp8_channel, quantize_folder, write_json
from quire import LLM, SamplingParams
from quire.errors import InvalidArgument, ModelError
from quire.models.checkpoint import load_checkpoint
from quire.models.config import load_model_config
from quire.models.format_report import describe_dequantised, describe_formats
from quire.models.formats.fp8 import Fp8
from quire.models.parameters import Weights
from torch import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def quantized(llama_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A plain checkpoint as `quantization: "fp8"` makes it, stored so, and the plain one of its numbers."""
    config = {"quantization_config": {"quant_method": "fp8"}}
    return quantize_folder(llama_folder(), tmp_path, fp8_channel, config=config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_kernels", [False, True])
def test_fp8_while_loading(
    llama_folder: Callable[..., Path],
    quantized: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    has_kernels: bool,
) -> None:
    """Every output gets the scale that makes its largest weight 448; the head stays as it is."""
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: has_kernels)
    table = load_model_config(llama_folder(), "fp8").parameters(dtype, GPU)
    weights = Weights(table, CPU)
    load_checkpoint(llama_folder(), weights.places())
    plain = Weights(load_model_config(quantized[1]).parameters(dtype), CPU)
    load_checkpoint(quantized[1], plain.places())
    for name, expected in plain._tensors.items():
        found = weights._tensors[name]
        if found.dtype == torch.float8_e4m3fn:
            scale = weights._tensors[name.replace(".weight", ".scale")]
            found = (found.float() * scale[:, None]).to(dtype)
        assert torch.equal(found, expected), name
    assert (weights._tensors["model.layers.0.mlp.down_proj.weight"].dtype == dtype) != has_kernels


def test_a_row_of_zeros(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A row of zeros stays zeros: its scale is not 0, by which nothing can be divided."""
    _, folder = quantize_folder(llama_folder(), tmp_path, fp8_channel, config={})
    name = "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors | {name: tensors[name] * (torch.arange(64) != 3)[:, None]})
    weights = Weights(load_model_config(folder, "fp8").parameters(torch.float32), CPU)
    load_checkpoint(folder, weights.places())
    weight = weights._tensors[name]
    assert not weight[3].any()
    assert weight.isfinite().all()
    assert weight[2].any()


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_weight_that_is_no_number(llama_folder: Callable[..., Path], tmp_path: Path, number: float) -> None:
    """A weight that cannot be quantised is named, with its file and where it is."""
    _, folder = quantize_folder(llama_folder(), tmp_path, fp8_channel, config={})
    name = "model.layers.0.mlp.down_proj.weight"

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name][3, 5] = number
        return tensors

    change_tensors(folder, spoil)
    weights = Weights(load_model_config(folder, "fp8").parameters(torch.float32), CPU)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(folder, weights.places())
    problem = f"got {number:g} at [3, 5]; allowed: finite numbers"
    assert str(caught.value) == f"{folder}/model.safetensors: {name}: {problem}"


def test_a_plain_checkpoint_is_served_as_its_quantised_one(
    llama_folder: Callable[..., Path], quantized: tuple[Path, Path]
) -> None:
    """The setting changes what is computed, to the bits of the dequantised weights."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    answers = []
    for folder, setting in ((llama_folder(), "fp8"), (quantized[1], None), (llama_folder(), None)):
        llm = LLM(str(folder), dtype="float32", max_model_len=64, quantization=setting)
        sequence = llm.generate([[5, 6, 7, 8]], params)[0].outputs[0]
        answers.append((sequence.token_ids, sequence.cumulative_logprob))
    assert answers[0] == answers[1]
    assert answers[0][1] != answers[2][1]


@pytest.mark.parametrize("setting", ["awq", "awq_marlin", "gptq_marlin", "compressed-tensors", "mxfp4"])
def test_a_method_that_a_plain_checkpoint_has_not(llama_folder: Callable[..., Path], setting: str) -> None:
    """Only fp8 is made of one that is not quantised."""
    with pytest.raises(InvalidArgument) as caught:
        load_model_config(llama_folder(), setting)
    assert str(caught.value).startswith(
        f'quantization: got "{setting}"; allowed: null or "fp8": the checkpoint '
    )


def test_the_method_of_a_quantised_checkpoint(quantized: tuple[Path, Path]) -> None:
    """A checkpoint's own method is accepted, any other is refused with both."""
    folder, _ = quantized
    assert load_model_config(folder, "fp8").quantization.method == "fp8"
    groups = {"quant_method": "compressed-tensors", "config_groups": {}, "format": "float-quantized"}
    for setting, method in (("modelopt", "fp8"), ("fp8", "compressed-tensors")):
        if method != "fp8":
            write_json(folder / "config.json", {"quantization_config": groups})
        with pytest.raises(InvalidArgument) as caught:
            load_model_config(folder, setting)
        expected = f'quantization: got "{setting}"; allowed: null or "{method}", the method of'
        assert str(caught.value).startswith(expected)


def test_what_the_log_says(llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The format, how many projections have it, which are plain, and the bytes of what is dequantised."""
    model = load_model_config(llama_folder(), "fp8")
    plain = load_model_config(llama_folder()).parameters(torch.bfloat16)
    assert (describe_formats(plain), describe_dequantised(plain)) == (None, None)
    table = model.parameters(torch.bfloat16, GPU)
    title = "21 projections fp8, quantised while loading, a scale for each channel"
    assert describe_formats(table) == f"weights (fp8): {title}; plain: lm_head"
    # Of each layer: q, k, v, o, gate, up, down, and a scale for each output.
    weights, outputs = 3 * 64 * (128 + 64 + 64 + 128 + 3 * 96), 3 * (128 + 64 + 64 + 64 + 96 + 96 + 64)
    sizes = f"{2 * weights / (1 << 20):.1f} MiB instead of {(weights + 4 * outputs) / (1 << 20):.1f}"
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: False)
    expected = f"weights are dequantised to bfloat16 while they are loaded, {sizes}: {title}"
    assert describe_dequantised(table) == expected
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: True)
    assert describe_dequantised(table) is None
