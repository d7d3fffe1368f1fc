"""Norms, activations and the embedding against torch and transformers."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_reference import assert_close
from quire import ops
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

DTYPES = [torch.float32, torch.bfloat16]
# With bfloat16 each step rounds as torch does; a sum in another order may turn a rounding here and there.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-4}
ROUNDED_ONCE = {torch.float32: 1e-6, torch.bfloat16: 3e-3}
SIZES = [1, 7, 8, 16, 33, 256, 250, 1000, 4096]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def llama_norm(size: int, dtype: torch.dtype, eps: float) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, eps).to(dtype)
    norm.weight.data = normal(size, dtype=dtype, seed=size) + 1
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int, dtype: torch.dtype) -> None:
    """Equals LlamaRMSNorm, rounding order included, also for rows that lie apart and with out given."""
    norm = llama_norm(size, dtype, 1e-5)
    wide = normal(5, size + 9, dtype=dtype)
    x = wide[:, :size]
    out = torch.full((5, size), math.nan, dtype=dtype)
    assert ops.rms_norm(x, norm.weight.data, 1e-5, out=out) is out
    assert_close(out, norm(x).detach(), TOLERANCE[dtype], f"rms_norm of {size}")
    assert torch.equal(wide, normal(5, size + 9, dtype=dtype)), "x changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_with_residual(size: int, dtype: torch.dtype) -> None:
    """The residual becomes residual + x, rounded, and the norm is of that; out may be x."""
    norm = llama_norm(size, dtype, 1e-6)
    x, residual = normal(5, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
    total = residual + x
    out = ops.rms_norm(x, norm.weight.data, 1e-6, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(out, norm(total).detach(), TOLERANCE[dtype], f"rms_norm of {size} with residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("theirs", "weight_offset"), [(GemmaRMSNorm, 1.0), (Olmo2RMSNorm, 0.0)])
def test_norms_that_round_once(
    theirs: type[nn.Module], weight_offset: float, size: int, dtype: torch.dtype
) -> None:
    """Gemma's, whose 1 + weight a 16-bit type cannot hold, and OLMo 2's: only the end is rounded."""
    weight = normal(size, dtype=dtype, seed=size) * 0.01 + (1 - weight_offset)
    norm = theirs(size, 1e-5).to(dtype)
    norm.weight.data = weight
    x = normal(5, size, dtype=dtype)
    out = ops.rms_norm(x, weight, 1e-5, weight_offset=weight_offset, rounds_once=True)
    assert_close(out, norm(x).detach(), TOLERANCE[dtype], f"{theirs.__name__} of {size}")


def test_an_offset_of_a_weight_needs_one_rounding() -> None:
    """A norm that is rounded before the product has no offset: no model computes one."""
    x = normal(2, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="weight_offset: got a value"):
        ops.rms_norm(x, x[0], 1e-5, weight_offset=1.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(has_bias: bool, size: int, dtype: torch.dtype) -> None:
    """Equals torch's layer_norm in float32, rounded once, for rows far from zero, and with a residual."""
    weight, bias = (
        normal(size, dtype=dtype, seed=1) + 1,
        normal(size, dtype=dtype, seed=2) if has_bias else None,
    )
    x, residual = normal(5, size + 9, dtype=dtype)[:, :size] + 3, normal(5, size, dtype=dtype, seed=3)

    def expected(x: Tensor) -> Tensor:
        shift = None if bias is None else bias.float()
        return torch.nn.functional.layer_norm(x.float(), (size,), weight.float(), shift, 1e-5).to(dtype)

    tolerance = 2 * TOLERANCE[dtype]
    assert_close(ops.layer_norm(x, weight, bias, 1e-5), expected(x), tolerance, f"layer_norm of {size}")
    total = residual + x
    out = ops.layer_norm(x, weight, bias, 1e-5, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(out, expected(total), tolerance, f"layer_norm of {size} with residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_scaled_residual(norm: str, dtype: torch.dtype) -> None:
    """The residual becomes residual + x * scale, each rounded, and the norm is of that."""
    weight = normal(250, dtype=dtype, seed=1)
    x, residual = normal(5, 250, dtype=dtype), normal(5, 250, dtype=dtype, seed=3)
    total = residual + x * 0.22
    if norm == "rms_norm":
        out = ops.rms_norm(x, weight, 1e-5, residual, residual_scale=0.22)
        expected = ops.rms_norm(total, weight, 1e-5)
    else:
        out = ops.layer_norm(x, weight, weight, 1e-5, residual, residual_scale=0.22)
        expected = ops.layer_norm(total, weight, weight, 1e-5)
    assert_close(residual, total, TOLERANCE[dtype], "residual")  # in float32 the product may be fused
    assert_close(out, expected, TOLERANCE[dtype], norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 72, 128])
def test_norms_of_part_of_a_row(head_dim: int, dtype: torch.dtype) -> None:
    """Queries and keys are normed in place inside qkv: as one row each, or head by head with the heads' own
    weights; nothing beside them changes."""
    width = 6 * head_dim
    before = normal(5, width + 3 * head_dim, dtype=dtype)
    weight = normal(6, head_dim, dtype=dtype, seed=1) + 1
    for norm, expected in (
        (ops.rms_norm, torch.nn.functional.rms_norm),
        (lambda x, w, eps, out: ops.layer_norm(x, w, None, eps, out=out), torch.nn.functional.layer_norm),
    ):
        for weights in (weight, weight.flatten()):
            qkv = before.clone()
            query = qkv[:, :width]
            assert norm(query, weights, 1e-5, out=query) is query
            pieces = before[:, :width].float().view(5, *weights.shape)
            wanted = expected(pieces, weights.shape[-1:], eps=1e-5) * weights.float()
            assert_close(query, wanted.view(5, width), ROUNDED_ONCE[dtype], "norm of heads")
            assert torch.equal(qkv[:, width:], before[:, width:])


def test_rms_norm_of_tiny_and_zero_rows() -> None:
    """eps keeps rows near zero finite."""
    norm = llama_norm(64, torch.float32, 1e-5)
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-20), torch.full((64,), 1e3)])
    assert_close(ops.rms_norm(x, norm.weight.data, 1e-5), norm(x).detach(), 1e-6, "rms_norm of tiny rows")


ACTIVATIONS: dict[ops.Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}  # ours: transformers'


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: ops.Activation, size: int, dtype: torch.dtype) -> None:
    """Equals transformers' activation(gate) * up, gate first, and activation(x), of small and large x."""
    wide = normal(5, 2 * size + 9, dtype=dtype) * torch.tensor([0.01, 1, 5, 30, 100], dtype=dtype)[:, None]
    gate_up = wide[:, : 2 * size]
    out = torch.full((5, size), math.nan, dtype=dtype)
    assert ops.act_mul(gate_up, out, activation=activation) is out
    function = ACT2FN[ACTIVATIONS[activation]]
    # Of gelu, transformers' own value in bfloat16 is rounded from another approximation.
    tolerance = max(TOLERANCE[dtype], 2e-3 if dtype is torch.bfloat16 and "gelu" in activation else 0)
    expected = function(gate_up[:, :size]) * gate_up[:, size:]
    assert_close(out, expected, tolerance, f"{activation} of {size}, times up")
    assert ops.activate(gate_up[:, :size], out, activation=activation) is out
    assert_close(out, function(gate_up[:, :size]), tolerance, f"{activation} of {size}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clamped_swiglu(dtype: torch.dtype) -> None:
    """Equals gpt-oss: gate at most 7, up within 7 of 0, gate * sigmoid(1.702 gate) * (up + 1)."""
    gate_up = normal(5, 500, dtype=dtype) * torch.tensor([0.01, 1, 5, 30, 100], dtype=dtype)[:, None]
    gate, up = gate_up.float().split(250, 1)
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    expected = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    out = ops.act_mul(gate_up, activation="swiglu_oai")
    assert_close(out, expected, ROUNDED_ONCE[dtype], "swiglu_oai")
    with pytest.raises(ValueError, match=r"activation: got 'swiglu_oai'; allowed here: those without a gate"):
        ops.activate(gate_up, activation="swiglu_oai")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_the_ends_of_float(activation: ops.Activation) -> None:
    """0 far below; far above the gate itself, squared by relu2; NaN stays NaN."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e18, math.nan]])
    out = ops.act_mul(torch.cat([gate, torch.ones_like(gate)], 1), activation=activation)
    power = 2 if activation == "relu2" else 1
    assert torch.equal(out[0, :5].abs(), torch.tensor([0.0, 0.0, 0.0, 200.0, 1e18]) ** power)
    assert out[0, 5].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_and_cap(dtype: torch.dtype) -> None:
    """x * scale, then soft_cap * tanh(x / soft_cap), in place in rows that lie apart."""
    for scale, soft_cap in ((1.0, 30.0), (0.0625, None), (13.25, 5.0)):
        wide = normal(5, 250, dtype=dtype) * 40
        wanted = wide.clone().float()
        x = wanted[:, :241] * scale
        wanted[:, :241] = x if soft_cap is None else soft_cap * (x / soft_cap).tanh()
        ops.scale_and_cap(wide[:, :241], scale=scale, soft_cap=soft_cap)
        assert_close(wide, wanted, ROUNDED_ONCE[dtype], f"{scale}, {soft_cap}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 256])
def test_embedding(size: int, dtype: torch.dtype) -> None:
    """out[i] = table[ids[i]], first and last row included."""
    table = normal(50, size, dtype=dtype)
    ids = torch.tensor([49, 0, 7, 7], dtype=torch.int32)
    out = torch.full((4, size), math.nan, dtype=dtype)
    assert torch.equal(ops.embedding(ids, table, out), table[ids.long()])
    assert torch.equal(ops.embedding(ids, table, scale=7.5), table[ids.long()] * 7.5)
    assert ops.embedding(ids[:0], table).shape == (0, size)


@pytest.mark.parametrize("token_id", [-1, 50])
def test_embedding_names_an_id_outside_the_vocabulary(token_id: int) -> None:
    """The error names the place, the id and the range, and nothing was written."""
    ids = torch.tensor([3, token_id], dtype=torch.int32)
    out = torch.full((2, 8), math.nan)
    with pytest.raises(
        (ValueError, RuntimeError), match=rf"token_ids\[1\]: got {token_id}; allowed: 0 to .* = 49"
    ):
        ops.embedding(ids, torch.zeros((50, 8)), out)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_and_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """Each row is bitwise the same with 1 and 2 threads, and alone."""
    weight = normal(512, dtype=dtype, seed=3)
    x, gate_up = normal(1500, 512, dtype=dtype), normal(1500, 1024, dtype=dtype, seed=4)
    residual = normal(1500, 512, dtype=dtype, seed=5)

    def run(rows: slice) -> list[Tensor]:
        updated = residual[rows].clone()
        return [
            ops.rms_norm(x[rows], weight, 1e-5),
            ops.rms_norm(x[rows], weight, 1e-5, updated),
            updated,
            ops.layer_norm(x[rows], weight, weight, 1e-5),
            ops.act_mul(gate_up[rows]),
            ops.activate(gate_up[rows], activation="gelu"),
            ops.scale_and_cap(x[rows].clone(), scale=3, soft_cap=2),
            ops.embedding(torch.arange(1500, dtype=torch.int32)[rows], x),
        ]

    one = run(slice(None))
    ops.set_num_threads(2)
    for actual, expected in zip(run(slice(None)), one, strict=True):
        assert torch.equal(actual, expected)
    for row in (0, 777, 1499):
        for actual, expected in zip(run(slice(row, row + 1)), one, strict=True):
            assert torch.equal(actual, expected[row : row + 1])


def test_no_rows() -> None:
    """Zero rows are fine."""
    assert ops.rms_norm(torch.zeros((0, 8)), torch.ones(8), 1e-5).shape == (0, 8)
    assert ops.act_mul(torch.zeros((0, 8))).shape == (0, 4)
    assert ops.activate(torch.zeros((0, 8)), activation="relu").shape == (0, 8)


def test_wrong_tensors_are_named() -> None:
    """Types and sizes that do not fit are refused with what was given."""
    x = torch.zeros((2, 8))
    with pytest.raises(ValueError, match=r"x, weight, out: got .*torch.float32\[7\]"):
        ops.rms_norm(x, torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match=r"bias: got torch.float32\[7\].*allowed: contiguous torch.float32"):
        ops.layer_norm(x, torch.ones(8), torch.ones(7), 1e-5)
    with pytest.raises(ValueError, match=r"residual: got torch.bfloat16\[2, 8\].* = \[2, 8\]"):
        ops.rms_norm(x, torch.ones(8), 1e-5, x.bfloat16())
    with pytest.raises(TypeError, match=r"x: got torch.float16; allowed: torch.float32, torch.bfloat16"):
        ops.rms_norm(x.half(), torch.ones(8).half(), 1e-5)
    with pytest.raises(ValueError, match=r"gate_up, out: got torch.float32\[2, 7\]"):
        ops.act_mul(torch.zeros((2, 7)))
    with pytest.raises(ValueError, match=r"token_ids: got torch.int64\[2\]"):
        ops.embedding(torch.zeros(2, dtype=torch.int64), x)
