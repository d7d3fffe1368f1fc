"""Norms, activations and the embedding on the GPU, against float32 references."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_reference import assert_close
from layer_cases import DTYPES, ROUNDED_ONCE, TOLERANCE, gemma_norm, llama_norm, normal
from quire import ops
from torch import Tensor

pytestmark = pytest.mark.gpu

SIZES = [1, 7, 8, 33, 250, 256, 1000, 2048, 4096, 8192]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm(size: int, dtype: torch.dtype) -> None:
    """Rounding order of Hugging Face, rows that lie apart, out poisoned, x unchanged."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    for apart in (0, 9, 16):  # 9: rows that are not aligned
        wide = normal(5, size + apart, dtype=dtype)
        before = wide.clone()
        out = torch.full((5, size), math.nan, dtype=dtype, device="cuda")
        ops.rms_norm(wide[:, :size], weight, 1e-5, out=out)
        assert_close(out, llama_norm(before[:, :size], weight, 1e-5), TOLERANCE[dtype], f"rms_norm of {size}")
        assert torch.equal(wide, before), "x changed"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_with_an_offset(size: int, dtype: torch.dtype) -> None:
    """Gemma's: 1 + weight, which a 16-bit type cannot hold, and nothing rounded before the end."""
    weight, x = normal(size, dtype=dtype, seed=size) * 0.01, normal(5, size, dtype=dtype)
    out = ops.rms_norm(x, weight, 1e-5, weight_offset=1.0, rounds_once=True)
    assert_close(out, gemma_norm(x, weight, 1e-5), TOLERANCE[dtype], f"rms_norm of {size} with an offset")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 16384])
def test_rms_norm_with_residual(size: int, dtype: torch.dtype) -> None:
    """The residual becomes residual + x, rounded, and the norm is of that; out may be x."""
    weight = normal(size, dtype=dtype, seed=size) + 1
    x, residual = normal(5, size, dtype=dtype), normal(5, size, dtype=dtype, seed=1)
    total = residual + x
    ops.rms_norm(x, weight, 1e-6, residual, out=x)
    assert torch.equal(residual, total)
    assert_close(x, llama_norm(total, weight, 1e-6), TOLERANCE[dtype], f"rms_norm of {size} with residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES[1:], 16384])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm(has_bias: bool, size: int, dtype: torch.dtype) -> None:
    """Equals torch's layer_norm in float32, rounded once, for rows far from zero, and with a residual."""
    weight, bias = normal(size, dtype=dtype, seed=1) + 1, normal(size, dtype=dtype, seed=2)
    shift = bias.float() if has_bias else None

    def expected(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x.float(), (size,), weight.float(), shift, 1e-5).to(dtype)

    for apart in (0, 9, 16):
        if apart and size > 8192:
            continue
        x, residual = normal(5, size + apart, dtype=dtype)[:, :size] + 3, normal(5, size, dtype=dtype, seed=3)
        out = ops.layer_norm(x, weight, bias if has_bias else None, 1e-5)
        assert_close(out, expected(x), 2 * TOLERANCE[dtype], f"layer_norm of {size}")
        total = residual + x
        out = ops.layer_norm(x, weight, bias if has_bias else None, 1e-5, residual, out=x)
        assert torch.equal(residual, total)
        assert_close(out, expected(total), 2 * TOLERANCE[dtype], f"layer_norm of {size} with residual")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaled_residual(dtype: torch.dtype) -> None:
    """The residual becomes residual + x * scale, each rounded, and the norm is of that."""
    weight = normal(256, dtype=dtype, seed=1)
    for norm in (ops.rms_norm, lambda x, w, *rest, **kw: ops.layer_norm(x, w, w, *rest, **kw)):
        x, residual = normal(5, 256, dtype=dtype), normal(5, 256, dtype=dtype, seed=3)
        total = residual + x * 0.22
        out = norm(x, weight, 1e-5, residual, residual_scale=0.22)
        assert_close(residual, total, TOLERANCE[dtype], "residual")  # in float32 the product may be fused
        assert_close(out, norm(total, weight, 1e-5), TOLERANCE[dtype], "norm")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 72, 80, 128])
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
            norm(query, weights, 1e-5, out=query)
            pieces = before[:, :width].float().view(5, *weights.shape)
            wanted = expected(pieces, weights.shape[-1:], eps=1e-5) * weights.float()
            assert_close(query, wanted.view(5, width), 2 * ROUNDED_ONCE[dtype], "norm of heads")
            assert torch.equal(qkv[:, width:], before[:, width:])


def test_rms_norm_of_tiny_and_zero_rows() -> None:
    """eps keeps rows near zero finite."""
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-20), torch.full((64,), 1e3)]).cuda()
    weight = torch.ones(64, device="cuda")
    assert_close(ops.rms_norm(x, weight, 1e-5), llama_norm(x, weight, 1e-5), 1e-6, "tiny rows")


def swiglu_oai(gate: Tensor) -> Tensor:
    gate = gate.clamp(max=7)
    return gate * torch.sigmoid(1.702 * gate)


ACTIVATIONS: dict[ops.Activation, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
    "swiglu_oai": swiglu_oai,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, 14336])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: ops.Activation, size: int, dtype: torch.dtype) -> None:
    """The activation rounded, times up; gate first; alone; small and large inputs, rows aligned or not."""
    scale = torch.tensor([0.01, 1, 5, 15, 30], dtype=dtype, device="cuda")[:, None]
    if activation == "relu2":
        scale = scale / 10  # float16 holds its squares
    for apart in (0, 9, 16):
        gate_up = (normal(5, 2 * size + apart, dtype=dtype) * scale)[:, : 2 * size]
        gate, up = gate_up[:, :size].float(), gate_up[:, size:].float()
        out = torch.full((5, size), math.nan, dtype=dtype, device="cuda")
        ops.act_mul(gate_up, out, activation=activation)
        value = ACTIVATIONS[activation](gate).to(dtype)
        if activation == "swiglu_oai":
            up = up.clamp(-7, 7) + 1
        assert_close(
            out, (value.float() * up).to(dtype), TOLERANCE[dtype], f"{activation} of {size}, times up"
        )
        if activation != "swiglu_oai":
            ops.activate(gate_up[:, :size], out, activation=activation)
            assert_close(out, value, TOLERANCE[dtype], f"{activation} of {size}")


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "swiglu_oai"])
def test_activations_at_the_ends_of_float(activation: ops.Activation) -> None:
    """0 far below; far above the gate itself, squared by relu2; NaN stays NaN."""
    gate = torch.tensor([[-1e30, -200.0, 0.0, 200.0, 1e18, math.nan]]).cuda()
    out = ops.act_mul(torch.cat([gate, torch.ones_like(gate)], 1), activation=activation).cpu()
    power = 2 if activation == "relu2" else 1
    assert torch.equal(out[0, :5].abs(), torch.tensor([0.0, 0.0, 0.0, 200.0, 1e18]) ** power)
    assert out[0, 5].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_and_cap(dtype: torch.dtype) -> None:
    """x * scale, then soft_cap * tanh(x / soft_cap), in place in rows that lie apart."""
    for scale, soft_cap in ((1.0, 30.0), (0.0625, None), (13.25, 5.0)):
        for size in (241, 240):
            wide = normal(5, 256, dtype=dtype) * 40
            wanted = wide.clone().float()
            x = wanted[:, :size] * scale
            wanted[:, :size] = x if soft_cap is None else soft_cap * (x / soft_cap).tanh()
            ops.scale_and_cap(wide[:, :size], scale=scale, soft_cap=soft_cap)
            assert_close(wide, wanted, ROUNDED_ONCE[dtype], f"{scale}, {soft_cap}, {size}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 256, 4096])
def test_embedding(size: int, dtype: torch.dtype) -> None:
    """out[i] = table[ids[i]], first and last row included; ids outside the vocabulary give NaN."""
    table = normal(50, size, dtype=dtype)
    ids = torch.tensor([49, 0, 7, 7, -1, 50], dtype=torch.int32, device="cuda")
    out = torch.zeros((6, size), dtype=dtype, device="cuda")
    for scale in (1.0, 7.5):
        ops.embedding(ids, table, out, scale=scale)
        assert torch.equal(out[:4], table[ids[:4].long()] * scale)
        assert out[4:].isnan().all()


def test_embedding_of_last_token_ids() -> None:
    """~row is the id that last_token_ids holds for the row; no such row and no such id give NaN."""
    table = normal(50, 72, dtype=torch.bfloat16)
    last = torch.tensor([3, 49, -1, 50, 0], dtype=torch.int32, device="cuda")
    ids = torch.tensor([~0, 5, ~1, ~4, ~2, ~3, ~5, -(2**31), 50], dtype=torch.int32, device="cuda")
    out = torch.zeros((9, 72), dtype=torch.bfloat16, device="cuda")
    ops.embedding(ids, table, out, last_token_ids=last)
    assert torch.equal(out[:4], table[[3, 5, 49, 0]])
    assert out[4:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "width2"), [(1, 1), (64, 2048), (4096, 256), (36, 8), (256, 0)])
def test_gather_rows(width: int, width2: int, dtype: torch.dtype) -> None:
    """out[j] = x[indices[j]] of both tensors, rows apart, repeats; an index outside gives NaN."""
    wide, wide2 = normal(20, width + 8, dtype=dtype), normal(20, width2 + 3, dtype=dtype, seed=1)
    tensors = [wide[:, :width], wide2[:, :width2]] if width2 else [wide[:, :width]]
    indices = torch.tensor([19, 0, 7, 7, 3, -1, 20], dtype=torch.int32, device="cuda")
    outs = [torch.zeros((7, x.size(1)), dtype=dtype, device="cuda") for x in tensors]
    pairs = [tensor for pair in zip(tensors, outs, strict=True) for tensor in pair]
    ops.gather_rows(indices, *pairs)
    for x, out in zip(tensors, outs, strict=True):
        assert torch.equal(out[:5], x[indices[:5].long()])
        assert out[5:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_mates_change_nothing(dtype: torch.dtype) -> None:
    """Each row is bitwise the same alone and in a batch."""
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
        ]

    together = run(slice(None))
    for row in (0, 777, 1499):
        for actual, expected in zip(run(slice(row, row + 1)), together, strict=True):
            assert torch.equal(actual, expected[row : row + 1])


def test_graph_capture() -> None:
    """Every layer can be captured; a replay works on what the buffers hold then."""
    x, weight = normal(16, 256, dtype=torch.bfloat16), normal(256, dtype=torch.bfloat16, seed=1)
    ids = torch.arange(16, dtype=torch.int32, device="cuda")
    out = torch.empty_like(x)
    half = torch.empty((16, 128), dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.embedding(ids, x, out)
        ops.rms_norm(out, weight, 1e-5, out=out)
        ops.act_mul(out, half)
    ids.copy_(ids.flip(0))
    graph.replay()
    assert torch.equal(half, ops.act_mul(ops.rms_norm(x.flip(0), weight, 1e-5)))


def test_no_rows_and_refused_sizes() -> None:
    """Zero rows are fine; sizes without a kernel are named."""
    zeros = torch.zeros((0, 8), device="cuda")
    assert ops.rms_norm(zeros, torch.ones(8, device="cuda"), 1e-5).shape == (0, 8)
    assert ops.act_mul(zeros).shape == (0, 4)
    big = torch.zeros((1, 40000), device="cuda")
    with pytest.raises(ValueError, match=r"hidden_size: got 40000; allowed: 1 to 16384"):
        ops.rms_norm(big, big, 1e-5)
