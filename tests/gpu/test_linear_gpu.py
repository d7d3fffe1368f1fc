"""Projections that add to the residual: what cuBLAS adds by itself, and what is left to the norm after it."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu

IN_SIZE, OUT_SIZE = 512, 384


def random(*shape: int, std: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda") * std).to(torch.bfloat16)


@pytest.mark.parametrize("num_rows", [1, 64, 65, 128, 129, 256, 257, 300, 2048])
@pytest.mark.parametrize(("bias", "is_invariant"), [(False, False), (True, False), (False, True)])
def test_sum_with_the_residual(num_rows: int, bias: bool, is_invariant: bool) -> None:
    """The residual and what is left for it are the product on top of it, in every number of rows."""
    from quire.models.cuda.linear import CudaLinear  # needs _cuda, which machines without a GPU do not build

    torch.manual_seed(num_rows)
    weight, given_bias = random(OUT_SIZE, IN_SIZE, std=IN_SIZE**-0.5), random(OUT_SIZE) if bias else None
    linear = CudaLinear(weight, given_bias, is_invariant=is_invariant)
    x, residual = random(num_rows, IN_SIZE), random(num_rows, OUT_SIZE)
    added = torch.full_like(residual, float("nan"))
    expected = residual.float() + x.float() @ weight.float().t()
    if given_bias is not None:
        expected += given_bias.float()

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
