"""Projections that add to the residual: what cuBLAS adds by itself, and what is left to the norm behind."""

from __future__ import annotations

import pytest
import torch
from quire.models.linear_cuda import CudaLinear

pytestmark = pytest.mark.gpu

IN_SIZE, OUT_SIZE = 512, 384


def random_linear(*, bias: bool, is_invariant: bool) -> CudaLinear:
    linear = CudaLinear(
        IN_SIZE, OUT_SIZE, torch.bfloat16, torch.device("cuda"), bias=bias, is_invariant=is_invariant
    )
    linear.weight.normal_(std=IN_SIZE**-0.5)
    if linear.bias is not None:
        linear.bias.normal_()
    linear.prepare()
    return linear


@pytest.mark.parametrize("num_rows", [1, 64, 65, 256, 257, 300, 2048])
@pytest.mark.parametrize(("bias", "is_invariant"), [(False, False), (True, False), (False, True)])
def test_sum_with_the_residual(num_rows: int, bias: bool, is_invariant: bool) -> None:
    """The residual and what is left for it are the product on top of it, in every number of rows."""
    torch.manual_seed(num_rows)
    linear = random_linear(bias=bias, is_invariant=is_invariant)
    x = torch.randn(num_rows, IN_SIZE, dtype=torch.bfloat16, device="cuda")
    residual = torch.randn(num_rows, OUT_SIZE, dtype=torch.bfloat16, device="cuda")
    added = torch.full_like(residual, float("nan"))
    expected = residual.float() + x.float() @ linear.weight.float().t()
    if linear.bias is not None:
        expected += linear.bias.float()

    before = residual.clone()
    rest = linear.add_to(x, residual, added)
    if rest is None:
        total = residual.float()
        assert num_rows > 256
        assert not bias
        assert not is_invariant  # a row's bits would depend on how many there are
    else:
        assert rest is added
        assert torch.equal(residual, before)
        total = residual.float() + rest.float()
    error = (total - expected).norm() / expected.norm()
    assert error < 4e-3, error.item()
