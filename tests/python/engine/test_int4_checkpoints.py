"""Four-bit checkpoints: every form is dequantised to the same bits, and what is wrong with one is named."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from four_bits import Rounded, pack_mxfp4, round_to_mxfp4
from quantized_checkpoints import (
    Stored,
    loaded,
    quantize_folder,
    write_json,
)
from quantized_forms import GROUP, INT4_FORMS, exact, gptq
from quire import LLM, SamplingParams
from quire.errors import InvalidArgument
from quire.models.checkpoint import fill_dummy
from quire.models.config import load_model_config
from quire.models.cpu.linear import CpuLinear
from quire.models.format_report import describe_formats
from quire.models.formats.int4 import Int4
from quire.models.formats.int4_layouts import dequantize_int4, dequantize_mxfp4
from quire.models.formats.mxfp4 import Mxfp4
from quire.models.parameters import Weights
from torch import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda")

LLAMA = {"hidden_size": 160, "intermediate_size": 224, "attention_bias": True, "mlp_bias": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": {"tie_word_embeddings": True},
    "rows in another order": {"model_type": "cohere"},
    "experts": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "hidden_size": 160,
    },
    "Mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "one matrix in the checkpoint": {"model_type": "phi3"},
}
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["full_attention"] * 3,
    "sliding_window": None,
}


Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make(llama_folder: Callable[..., Path], tmp_path: Path) -> Make:
    """A quantised checkpoint of a form, and the plain one of its dequantised weights."""

    def make(form: str, model: str = "llama", **options: Any) -> tuple[Path, Path]:
        stored_as, config = INT4_FORMS[form]
        changes = {"quantization_config": config | options.pop("config", {})}
        options.setdefault("is_quantized", lambda name: name.endswith("_proj.weight") or ".experts." in name)
        return quantize_folder(llama_folder(**MODELS[model]), tmp_path, stored_as, config=changes, **options)

    return make


@pytest.fixture
def gpt_oss(llama_folder: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Experts in blocks, and the plain checkpoint of the same numbers."""

    def stored_as(experts: Tensor) -> Stored:
        """experts: [num_experts, in, out]."""
        made = [round_to_mxfp4(each.t()) for each in experts]
        packed = torch.stack([pack_mxfp4(each)["weight_packed"] for each in made])
        tensors = {
            "_blocks": packed.unflatten(-1, (-1, 16)),
            "_scales": torch.stack([each.exponents for each in made]),
        }
        return Stored(tensors, torch.stack([each.matrix(torch.float32).t() for each in made]))

    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return quantize_folder(
        llama_folder(**GPT_OSS),
        tmp_path,
        stored_as,
        config={"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": plain}},
        is_quantized=lambda name: name.endswith(("gate_up_proj", "down_proj")),
    )


def check_equal(quantized: Path, plain: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """All parameters have the same bits."""
    found, expected = loaded(quantized, dtype), loaded(plain, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", INT4_FORMS)
def test_weights_are_dequantised_exactly(make: Make, form: str, dtype: torch.dtype) -> None:
    """Computed in float32 and rounded once; projections that are one matrix keep their own scales."""
    check_equal(*make(form), dtype)


@pytest.mark.parametrize("form", ["AWQ", "GPTQ", "GPTQ act-order", "compressed-tensors"])
@pytest.mark.parametrize("model", MODELS)
def test_models_of_all_kinds(make: Make, model: str, form: str) -> None:
    """Experts, rows in another order, projections that the checkpoint has as one, and a tied head, which is
    never quantised."""
    check_equal(*make(form, model))


def test_gpt_oss(gpt_oss: tuple[Path, Path]) -> None:
    """Blocks of all experts at once; gate and up, which are stored side by side, are put apart."""
    check_equal(*gpt_oss)


@pytest.mark.parametrize("form", ["AWQ", "GPTQ act-order", "compressed-tensors mxfp4"])
def test_a_quantised_checkpoint_answers_as_the_plain_one(make: Make, form: str) -> None:
    """Ids and log probabilities are the same; so are ids alone and beside other requests."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    prompt, other = [5, 6, 7, 8], [9, 10]
    answers = []
    for folder in make(form):
        llm = LLM(str(folder), dtype="float32", max_model_len=64)
        outputs = llm.generate([prompt], params) + llm.generate([other, prompt, other], params)
        sequences = [output.outputs[0] for output in outputs]
        assert sequences[0].token_ids == sequences[2].token_ids
        answers.append([(each.token_ids, each.cumulative_logprob) for each in sequences])
    assert answers[0] == answers[1]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the kernels: what they were given last."""
    given: dict[str, Any] = {}

    def keep(**arguments: Any) -> None:
        given.update(arguments)

    module = types.ModuleType("quire.models.cuda.int4_linear")
    vars(module).update(CudaInt4Linear=keep, CudaInt4GateUp=keep)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Int4, "has_kernels", lambda *_: True)
    monkeypatch.setattr(Mxfp4, "has_kernels", lambda *_: True)
    return given


@pytest.mark.parametrize("form", INT4_FORMS)
def test_kernels_get_the_common_form(make: Make, kernels: dict[str, Any], form: str) -> None:
    """Where there are kernels four bits stay four, rows of all parts with their own scales; the ledger counts
    them to the byte."""
    quantized, plain = make(form)
    found, expected = loaded(quantized, torch.bfloat16, GPU), loaded(plain, torch.bfloat16)
    table = load_model_config(quantized).parameters(torch.bfloat16, GPU)
    assert table.num_bytes == sum(tensor.nbytes for tensor in found.values())
    for projection in table.spec.layers[1].projections:
        name = projection.parts[0].name
        roles = table.linear(projection).tensors
        tensors = {role: found[parameter.name] for role, parameter in roles.items()}
        assert tensors["weight"].nbytes * 2 == expected[f"{name}.weight"].numel()
        table.format_of(projection).linear(projection, tensors, is_invariant=True)
        assert kernels["is_invariant"]
        assert torch.equal(kernels["bias"], expected[f"{name}.bias"])
        if "mxfp4" in form:
            matrix = dequantize_mxfp4(kernels["weight"], kernels["scale"], torch.bfloat16)
        else:
            roles_of_int4 = ("weight", "scale", "zero", "columns")
            matrix = dequantize_int4(*(kernels.get(role) for role in roles_of_int4))
        assert kernels["group_size"] * kernels["scale"].size(1) == matrix.size(1)
        assert torch.equal(matrix, expected[f"{name}.weight"])
        assert ("columns" in kernels) == ("act-order" in form)
        kernels.clear()


def test_parts_whose_columns_are_in_different_orders(
    llama_folder: Callable[..., Path],
    tmp_path: Path,
    kernels: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kernels read the inputs in one order: such projections are dequantised, and named."""

    def with_own_order(matrix: Tensor, group_size: int, is_symmetric: bool) -> Rounded:
        seed = int(matrix.view(torch.int32)[0, 0]) & 255
        groups = torch.randperm(matrix.size(1), generator=torch.Generator().manual_seed(seed)) // group_size
        return exact(matrix, group_size, is_symmetric, groups)

    form = gptq(GROUP, with_own_order, is_symmetric=False, desc_act=True)
    quantized, plain = quantize_folder(
        llama_folder(**LLAMA), tmp_path, form.stored_as, config={"quantization_config": form.config}
    )
    found, expected = loaded(quantized, torch.bfloat16, GPU), loaded(plain, torch.bfloat16)
    table = load_model_config(quantized).parameters(torch.bfloat16, GPU)
    qkv = table.spec.layers[1].attention.qkv
    tensors = {role: found[parameter.name] for role, parameter in table.linear(qkv).tensors.items()}
    x = torch.randn(3, 160, dtype=torch.bfloat16)
    made = table.format_of(qkv).linear(qkv, tensors, is_invariant=False)
    name = qkv.parts[0].name
    assert torch.equal(made(x), CpuLinear(expected[f"{name}.weight"], expected[f"{name}.bias"])(x))
    assert (
        f"{name}: dequantised: the projections of one matrix have columns in different orders" in caplog.text
    )
    assert kernels == {}


@pytest.mark.parametrize("form", ["AWQ", "GPTQ act-order", "compressed-tensors mxfp4"])
def test_dummy_weights(make: Make, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """They have the size of a trained model's, dequantised or as kernels take them."""
    folder, _ = make(form)
    for has_kernels in (False, True):
        monkeypatch.setattr(Int4, "has_kernels", lambda *_, has=has_kernels: has)
        monkeypatch.setattr(Mxfp4, "has_kernels", lambda *_, has=has_kernels: has)
        table = load_model_config(folder).parameters(torch.bfloat16, GPU)
        weights = Weights(table, CPU)
        fill_dummy(weights.places(), seed=3)
        linear = table.spec.layers[1].mlp.down
        tensors = [*weights.linear(linear).values()][:-1]  # without the bias
        if has_kernels and form == "GPTQ act-order":
            tensors[-1] = tensors[-1][0]
        matrix = table.format_of(linear).dequantize(tensors, torch.bfloat16)
        assert 0.01 < float(matrix.float().std()) < 0.03


@pytest.mark.parametrize(
    ("form", "changes", "plain"),
    [
        ("AWQ", {"modules_to_not_convert": ["layers.2.mlp", "gate"]}, ["layers.2.mlp", "gate"]),
        ("AWQ", {"modules_to_not_convert": None}, []),
        (
            "GPTQ",
            {"dynamic": {r"-:.*\.layers\.2\.mlp": {}, "+:.*k_proj": {"group_size": GROUP}}},
            ["layers.2.mlp"],
        ),
        (
            "GPTQ",
            {"modules_in_block_to_quantize": [["self_attn.k_proj", "self_attn.v_proj"], ["mlp.up_proj"]]},
            ["q_proj", "o_proj", "gate_proj", "down_proj"],
        ),
    ],
)
def test_projections_that_are_left_plain(
    make: Make, form: str, changes: dict[str, Any], plain: list[str]
) -> None:
    """By the lists that each method has."""
    check_equal(
        *make(
            form,
            config=changes,
            is_quantized=lambda name: "_proj.weight" in name and not any(part in name for part in plain),
        )
    )


def test_settings_of_single_projections(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """GPTQModel's `dynamic` has another size of groups for some, and the head may be quantised."""

    def stored_as(matrix: Tensor) -> Stored:
        return gptq(16 if matrix.size(1) == 224 else GROUP, exact).stored_as(matrix)

    config = gptq(GROUP, lm_head=True, dynamic={r".*\.down_proj": {"group_size": 16}}).config
    check_equal(
        *quantize_folder(
            llama_folder(**LLAMA, vocab_size=320),
            tmp_path,
            stored_as,
            config={"quantization_config": config},
            is_quantized=lambda name: "_proj.weight" in name or name == "lm_head.weight",
        )
    )


@pytest.mark.parametrize(
    ("form", "file", "described"),
    [
        ("GPTQ", "quantize_config.json", {"bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
        (
            "AWQ",
            "quant_config.json",
            {"w_bit": 4, "q_group_size": GROUP, "zero_point": True, "version": "GEMM"},
        ),
    ],
)
def test_files_of_their_own(make: Make, form: str, file: str, described: dict[str, Any]) -> None:
    """AutoGPTQ and AutoAWQ may describe a checkpoint in a file beside config.json."""
    quantized, plain = make(form, files={file: described})
    write_json(quantized / "config.json", {"quantization_config": None})
    check_equal(quantized, plain)


def test_zeros_that_older_programs_wrote_as_biases(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Are read by nothing where the model has no biases."""

    def stored_as(matrix: Tensor) -> Stored:
        made = INT4_FORMS["GPTQ"].stored_as(matrix)
        return made._replace(tensors={**made.tensors, ".bias": torch.zeros(matrix.size(0))})

    check_equal(
        *quantize_folder(
            llama_folder(), tmp_path, stored_as, config={"quantization_config": INT4_FORMS["GPTQ"].config}
        )
    )


@pytest.mark.parametrize(
    ("form", "accepted", "refused", "title"),
    [
        (
            "AWQ",
            ["awq", "awq_marlin"],
            "gptq",
            "weights (awq): 21 projections int4, groups of 32; plain: lm_head",
        ),
        ("GPTQ, rows", ["gptq", "gptq_marlin"], "awq", "21 projections int4, a scale for each row; plain"),
        ("compressed-tensors mxfp4", ["compressed-tensors"], "mxfp4", "21 projections mxfp4; plain: lm_head"),
    ],
)
def test_the_setting(make: Make, form: str, accepted: list[str], refused: str, title: str) -> None:
    """The checkpoint's method is accepted by vLLM's names for it, any other is refused with both; the log has
    the format."""
    folder, _ = make(form)
    for setting in accepted:
        table = load_model_config(folder, setting).parameters(torch.bfloat16)
        assert title in str(describe_formats(table))
    with pytest.raises(InvalidArgument) as caught:
        load_model_config(folder, refused)
    assert str(caught.value).startswith(f'quantization: got "{refused}"; allowed: null or "{accepted[0]}"')
