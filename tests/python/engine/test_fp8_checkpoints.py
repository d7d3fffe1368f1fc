"""fp8 checkpoints: every form is dequantised to the same bits, and what is wrong with one is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import (
    Stored,
    change_tensors,
    fp8_block,
    fp8_channel,
    fp8_tensor,
    loaded,
    quantize_folder,
    write_json,
)
from quire import LLM, SamplingParams
from quire.errors import ModelError
from quire.models.checkpoint import fill_dummy, load_checkpoint
from quire.models.config import load_model_config
from quire.models.formats.fp8 import Fp8
from quire.models.parameters import Weights
from quire.runner.memory import weight_bytes
from torch import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# No size is a multiple of a block's, and all biases are there.
LLAMA = {"hidden_size": 160, "intermediate_size": 200, "attention_bias": True, "mlp_bias": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": {"model_type": "qwen3", "head_dim": 40},
    "tied": {"tie_word_embeddings": True},
    "rows in another order": {"model_type": "cohere"},
    "experts": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 136,
        "hidden_size": 160,
    },
}


def groups(strategy: str, **weights: Any) -> dict[str, Any]:
    described = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": described,
                "input_activations": {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
            }
        },
    }


def fp8(**values: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic"} | values


def modelopt(algorithm: str) -> dict[str, Any]:
    quantization = {"quant_algo": algorithm, "exclude_modules": ["lm_head", "*.mlp.gate"]}
    return {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": quantization}}


BLOCKS = {"block_structure": [128, 128]}
# How weights are stored, quantization_config, and other files.
FORMS: dict[str, tuple[Callable[[Tensor], Stored], dict[str, Any] | None, dict[str, Any]]] = {
    "compressed-tensors tensor": (partial(fp8_tensor, shape=(1,)), groups("tensor"), {}),
    "compressed-tensors channel": (fp8_channel, groups("channel"), {}),
    "compressed-tensors block": (fp8_block, groups("block", **BLOCKS), {}),
    "bfloat16 scales": (partial(fp8_channel, scale_dtype=torch.bfloat16), groups("channel"), {}),
    "DeepSeek": (partial(fp8_block, suffix="_scale_inv"), fp8(weight_block_size=[128, 128]), {}),
    "AutoFP8": (fp8_tensor, fp8(activation_scheme="static"), {}),
    "Mistral": (partial(fp8_tensor, suffix="_scale_inv"), fp8(weight_block_size=None), {}),
    "ModelOpt in config.json": (
        fp8_tensor,
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        {},
    ),
    "ModelOpt tensor": (fp8_tensor, None, modelopt("FP8")),
    "ModelOpt channel": (fp8_channel, None, modelopt("FP8_PER_CHANNEL_PER_TOKEN")),
    "ModelOpt block": (partial(fp8_block, has_unit_axes=True), None, modelopt("FP8_PB_WO")),
}
Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make(llama_folder: Callable[..., Path], tmp_path: Path) -> Make:
    """A quantised checkpoint of a form, and the plain one of its dequantised weights."""

    def make(form: str, model: str = "llama", **options: Any) -> tuple[Path, Path]:
        stored_as, config, files = FORMS[form]
        changes = {"quantization_config": config} | options.pop("config", {})
        source = llama_folder(**MODELS[model])
        if model == "experts":  # transformers 5 saves it as num_local_experts
            write_json(source / "config.json", {"num_experts": MODELS[model]["num_experts"]})
        return quantize_folder(source, tmp_path, stored_as, config=changes, files=files, **options)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_dequantised_exactly(make: Make, form: str, dtype: torch.dtype) -> None:
    """Weight times scale in float32, rounded once; projections that are one matrix keep their own scales."""
    quantized, plain = make(form)
    found, expected = loaded(quantized, dtype), loaded(plain, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("form", ["compressed-tensors channel", "DeepSeek", "Mistral", "ModelOpt tensor"])
@pytest.mark.parametrize("model", MODELS)
def test_models_of_all_kinds(make: Make, model: str, form: str) -> None:
    """Experts, rows in another order, and a tied head, which is never quantised."""
    quantized, plain = make(form, model)
    found, expected = loaded(quantized, torch.bfloat16), loaded(plain, torch.bfloat16)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("model", ["llama", "experts"])
def test_a_quantised_checkpoint_answers_as_the_plain_one(make: Make, model: str) -> None:
    """Ids and log probabilities are the same."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    answers = []
    for folder in make("compressed-tensors channel", model):
        (output,) = LLM(str(folder), dtype="float32", max_model_len=64).generate([[5, 6, 7, 8]], params)
        sequence = output.outputs[0]
        answers.append((sequence.token_ids, sequence.cumulative_logprob))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("model", ["llama", "rows in another order"])
@pytest.mark.parametrize("form", ["compressed-tensors tensor", "DeepSeek"])
def test_kernels_get_codes_and_a_scale_for_each_output(
    make: Make, monkeypatch: pytest.MonkeyPatch, form: str, model: str
) -> None:
    """Where there are kernels the codes stay as they are, rows of all parts with their own scales; the ledger
    counts both to the byte."""
    quantized, plain = make(form, model)
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: True)
    found, expected = loaded(quantized, torch.bfloat16, GPU), loaded(plain, torch.bfloat16)
    spec = load_model_config(quantized).spec
    for projection in spec.layers[1].projections:
        name = projection.parts[0].name
        weight, scale = found[f"{name}.weight"], found[f"{name}.scale"]
        assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert weight.shape == expected[f"{name}.weight"].shape
        columns = -(-weight.size(1) // 128)
        assert scale.shape == ((weight.size(0), columns) if form == "DeepSeek" else (weight.size(0),))
        scales = scale.repeat_interleave(128, 1)[:, : weight.size(1)] if scale.dim() > 1 else scale[:, None]
        assert torch.equal((weight.float() * scales).bfloat16(), expected[f"{name}.weight"])
    table = load_model_config(quantized).parameters(torch.bfloat16, GPU)
    assert table.num_bytes == sum(tensor.nbytes for tensor in found.values())
    assert table.num_bytes < load_model_config(plain).parameters(torch.bfloat16).num_bytes


def test_without_kernels_the_ledger_counts_what_is_dequantised(make: Make) -> None:
    """A CPU takes as much memory for a quantised checkpoint as for the plain one."""
    sizes = [weight_bytes(load_model_config(each).parameters(torch.bfloat16)) for each in make("AutoFP8")]
    assert sizes[0] == sizes[1]


IGNORED = {
    "exact": (groups("channel"), {"ignore": ["lm_head", "model.layers.1.mlp.down_proj"]}),
    "regex": (groups("channel"), {"ignore": ["re:.*layers\\.1\\.mlp\\.down_proj$", "lm_head"]}),
    "targets": (groups("channel"), {"ignore": [], "targets": ["re:.*(?<!1\\.mlp\\.down)_proj$"]}),
    "under another prefix": (
        groups("channel"),
        {"ignore": ["lm_head", "model.language_model.layers.1.mlp.down_proj"]},
    ),
}


@pytest.mark.parametrize("case", IGNORED)
def test_lists_of_plain_projections(make: Make, case: str) -> None:
    """A projection that the checkpoint leaves out is plain, by its name or an expression."""
    config, changes = IGNORED[case]
    config = config | {"ignore": changes["ignore"]}
    if "targets" in changes:
        group = config["config_groups"]["group_0"] | {"targets": changes["targets"]}
        config = config | {"config_groups": {"group_0": group}}
    quantized, plain = make(
        "compressed-tensors channel",
        config={"quantization_config": config},
        is_quantized=lambda name: "_proj" in name and "1.mlp.down" not in name and name.endswith("weight"),
    )
    found, expected = loaded(quantized, torch.bfloat16), loaded(plain, torch.bfloat16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("form", "key", "names"),
    [
        ("DeepSeek", "modules_to_not_convert", ["model.layers.1", "lm_head"]),
        ("AutoFP8", "ignored_layers", [f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"] + ["mlp"]),
        ("ModelOpt tensor", "exclude_modules", ["lm_head", "model.layers.1*"]),
    ],
)
def test_modules_that_are_left_plain(make: Make, form: str, key: str, names: list[str]) -> None:
    """A module's name stands for all that is inside of it; ModelOpt's has wildcards."""
    of_layers = ("self_attn",) if "mlp" in names else ("",)
    quantized, plain = make(
        form,
        is_quantized=lambda name: (
            "_proj.weight" in name and "layers.1" not in name and any(each in name for each in of_layers)
        ),
    )
    if form == "ModelOpt tensor":
        listed = {"quant_algo": "FP8", key: names}
        write_json(quantized / "hf_quant_config.json", {"quantization": listed})
    else:
        write_json(quantized / "config.json", {"quantization_config": FORMS[form][1] | {key: names}})
    found, expected = loaded(quantized, torch.bfloat16), loaded(plain, torch.bfloat16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_older_key(make: Make) -> None:
    """compression_config is what quantization_config was in older files of compressed-tensors."""
    config = groups("channel")
    del config["quant_method"]
    changes = {"quantization_config": None, "compression_config": config}
    quantized, plain = make("compressed-tensors channel", config=changes)
    found, expected = loaded(quantized, torch.bfloat16), loaded(plain, torch.bfloat16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
@pytest.mark.parametrize("form", ["Mistral", "compressed-tensors channel"])
def test_inside_of_a_multimodal_model(make: Make, form: str, prefix: str) -> None:
    """Names begin otherwise, and scales of activations are passed over there, too."""
    quantized, plain = make(form)
    begins = "model." if prefix == "model.language_model." else ""

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {
            prefix + key.removeprefix(begins) if key.startswith(begins) else key: tensor
            for key, tensor in tensors.items()
        }
        activations = {f"{key.removesuffix('weight')}activation_scale": torch.ones(()) for key in renamed}
        return renamed | {key: each for key, each in activations.items() if "_proj.activation" in key}

    change_tensors(quantized, rename)
    found, expected = loaded(quantized, torch.bfloat16), loaded(plain, torch.bfloat16)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


KV_NAMES: dict[str, tuple[str, ...]] = {
    "compressed-tensors": ("self_attn.k_scale", "self_attn.v_scale"),
    "vLLM": ("self_attn.attn.k_scale", "self_attn.attn.v_scale"),
    "ModelOpt": ("self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"),
    "older": ("self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"),
    "one for both": ("self_attn.kv_scale",),
}


@pytest.mark.parametrize("form", KV_NAMES)
def test_scales_of_the_kv_cache(make: Make, form: str) -> None:
    """They are found under every name, as a scalar or a vector of one; 1 where a layer has none."""
    folder, plain = make("compressed-tensors channel")
    names = [f"model.layers.1.{name}" for name in KV_NAMES[form]]
    scales = {names[0]: torch.tensor(0.25), names[-1]: torch.tensor([0.5])}
    change_tensors(folder, lambda tensors: tensors | scales)
    table = load_model_config(folder).parameters(torch.bfloat16)
    weights = Weights(table, CPU)
    load_checkpoint(folder, weights.places(), table.ignored)
    assert Weights(load_model_config(plain).parameters(torch.bfloat16), CPU).kv_scales() == [(1.0, 1.0)] * 3
    assert weights.kv_scales() == [(1.0, 1.0), (0.25 if len(names) > 1 else 0.5, 0.5), (1.0, 1.0)]


def test_a_scale_of_the_kv_cache_that_is_none(make: Make) -> None:
    """File, tensor, value, and what is allowed."""
    folder, _ = make("compressed-tensors channel")
    name = "model.layers.1.self_attn.v_scale"
    for wrong, problem in (
        (torch.tensor(0.0), "got 0 at []; allowed: finite"),
        (torch.ones(2), "got shape [2]"),
    ):
        change_tensors(folder, lambda tensors: tensors | {name: wrong})  # noqa: B023 - called at once
        with pytest.raises(ModelError) as caught:
            loaded(folder, torch.bfloat16)
        assert f"model.safetensors: {name}: {problem}" in str(caught.value)


def test_a_quantised_head(make: Make) -> None:
    """A head that the checkpoint quantises is dequantised; of a tied model it is then another head."""
    quantized, plain = make(
        "compressed-tensors channel",
        config={"quantization_config": groups("channel") | {"ignore": []}},
        is_quantized=lambda name: "_proj.weight" in name or name == "lm_head.weight",
    )
    expected = loaded(plain, torch.bfloat16)["lm_head.weight"]
    for is_tied in (False, True):
        write_json(quantized / "config.json", {"tie_word_embeddings": is_tied})
        assert torch.equal(loaded(quantized, torch.bfloat16)["lm_head.weight"], expected)


def test_parts_that_are_stored_differently_are_dequantised(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only some of the projections of one matrix are quantised, no kernel takes it as it is."""
    config = groups("channel") | {"ignore": ["lm_head", "re:.*k_proj"]}
    quantized, plain = make(
        "compressed-tensors channel",
        config={"quantization_config": config},
        is_quantized=lambda name: "_proj.weight" in name and "k_proj" not in name,
    )
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: True)
    found, expected = loaded(quantized, torch.bfloat16, GPU), loaded(plain, torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(found[name], expected[name])
    assert found["model.layers.0.self_attn.o_proj.weight"].dtype == torch.float8_e4m3fn


ROOT = "model.layers.1.mlp.up_proj"


def with_tensor(suffix: str, make: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    name = f"{ROOT}{suffix}"
    return lambda folder: change_tensors(
        folder, lambda tensors: tensors | {name: make(tensors[name]).contiguous()}
    )


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return change


def without(suffix: str) -> Callable[[Path], None]:
    name = f"{ROOT}{suffix}"
    return lambda folder: change_tensors(
        folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}
    )


def as_config(config: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", {"quantization_config": config})


FILE = "model.safetensors"
MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN code": (
        with_tensor(".weight", with_value(float("nan"))),
        f"{FILE}: {ROOT}.weight: got NaN at [0, 3]; allowed: numbers",
    ),
    "no scale": (without(".weight_scale"), f"missing from the checkpoint: {ROOT}.weight_scale"),
    "truncated scales": (
        with_tensor(".weight_scale", lambda scale: scale[:50]),
        f"{FILE}: {ROOT}.weight_scale: got shape [50, 1]; allowed: [200]",
    ),
    "zero scale": (
        with_tensor(".weight_scale", with_value(0.0)),
        f"{FILE}: {ROOT}.weight_scale: got 0 at [3, 0]; allowed: finite numbers above 0",
    ),
    "negative scale": (with_tensor(".weight_scale", with_value(-1.0)), "got -1 at [3, 0]; allowed: finite"),
    "NaN scale": (
        with_tensor(".weight_scale", with_value(float("nan"))),
        "got nan at [3, 0]; allowed: finite",
    ),
    "infinite scale": (with_tensor(".weight_scale", with_value(float("inf"))), "got inf at [3, 0]; allowed"),
    "integer scales": (
        with_tensor(".weight_scale", lambda scale: scale.to(torch.int32)),
        f"{FILE}: {ROOT}.weight_scale: got dtype I32; allowed: F64, F32, F16, BF16",
    ),
    "plain weight": (
        with_tensor(".weight", lambda weight: weight.float()),
        f"{FILE}: {ROOT}.weight: got dtype F32; allowed: F8_E4M3",
    ),
    "e5m2": (
        with_tensor(".weight", lambda weight: weight.float().to(torch.float8_e5m2)),
        f"{FILE}: {ROOT}.weight: got dtype F8_E5M2; allowed: F8_E4M3",
    ),
    "scales of blocks": (
        as_config(groups("block", **BLOCKS)),
        "weight_scale: got shape [160, 1]; allowed: [2, 2]",
    ),
    "other blocks": (
        as_config(groups("block", block_structure=[64, 64])),
        "config_groups.group_0.weights.block_structure: got [64, 64]; allowed: [128, 128]",
    ),
    "int8": (
        as_config(groups("channel", type="int")),
        'quantization_config.config_groups.group_0.weights.type: got "int"; allowed: "float"',
    ),
    "four bits": (as_config(groups("channel", num_bits=4)), "weights.num_bits: got 4; allowed: 8"),
    "zero points": (as_config(groups("channel", symmetric=False)), "symmetric: got false; allowed: true"),
    "groups": (as_config(groups("group")), 'strategy: got "group"; allowed: "tensor", "channel", "block"'),
    "nvfp4": (
        as_config(groups("channel") | {"format": "nvfp4-pack-quantized"}),
        'config_groups.group_0.format: got "nvfp4-pack-quantized"; allowed: "float-quantized"',
    ),
    "int8 of activations too": (
        as_config(groups("channel") | {"format": "int-quantized"}),
        'config_groups.group_0.format: got "int-quantized"; allowed: "float-quantized"',
    ),
    "2:4": (
        as_config(groups("channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}}),
        'sparsity_config.format: got "sparse-24-bitmask"; allowed: "dense"',
    ),
    "rotations": (
        as_config(groups("channel") | {"transform_config": {"config_groups": {"u": {}}}}),
        "transform_config.config_groups: got {",
    ),
    "no expression": (
        as_config(groups("channel") | {"ignore": ["re:("]}),
        'quantization_config.ignore: got "re:("; allowed: names of modules',
    ),
    "e5m2 by name": (as_config(fp8(fmt="e5m2")), 'quantization_config.fmt: got "e5m2"; allowed: "e4m3"'),
    "fp8 of other blocks": (
        as_config(fp8(weight_block_size=[1, 128])),
        "weight_block_size: got [1, 128]; allowed: [128, 128]",
    ),
    "marlin": (
        as_config({"quant_method": "marlin"}),
        'quantization_config.quant_method: got "marlin"; allowed: "compressed-tensors", "fp8", "modelopt"',
    ),
    "not described": (
        as_config({}),
        "quantization_config.quant_method: got null; allowed:",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_is_named(make: Make, mistake: str) -> None:
    """File, tensor or key, what is there, and what is allowed."""
    spoil, expected = MISTAKES[mistake]
    folder, _ = make("compressed-tensors channel")
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        loaded(folder, torch.bfloat16)
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("has_kernels", [False, True])
@pytest.mark.parametrize("form", ["compressed-tensors channel", "DeepSeek"])
def test_dummy_weights(make: Make, monkeypatch: pytest.MonkeyPatch, form: str, has_kernels: bool) -> None:
    """They have the size of a trained model's, and repeat, in the form that the device takes."""
    folder, _ = make(form)
    shutil.rmtree(folder / "model.safetensors", ignore_errors=True)
    monkeypatch.setattr(Fp8, "has_kernels", lambda *_: has_kernels)
    made = []
    for _ in range(2):
        weights = Weights(load_model_config(folder).parameters(torch.bfloat16, GPU), CPU)
        fill_dummy(weights.places(), seed=3)
        made.append(weights)
    first, second = ({name: tensor.float() for name, tensor in each._tensors.items()} for each in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "model.layers.1.mlp.down_proj"
    weight = first[f"{name}.weight"] * (first[f"{name}.scale"].reshape(160, -1)[:, :1] if has_kernels else 1)
    assert 0.015 < float(weight.std()) < 0.025
