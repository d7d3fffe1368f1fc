"""Packed projections compute what plain ones do."""

from __future__ import annotations

import pytest
import torch
from quire.models.linear import Linear


@pytest.mark.parametrize("num_rows", [0, 1, 16, 33, 300])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_does_not_change_the_product(dtype: torch.dtype, bias: bool, num_rows: int) -> None:
    """Before and after pack(), x @ weight.T + bias."""
    torch.manual_seed(0)
    linear = Linear(48, 80, dtype, bias=bias)
    linear.weight.normal_()
    if linear.bias is not None:
        linear.bias.normal_()
    x = torch.randn(num_rows, 48, dtype=dtype)
    with torch.inference_mode():
        exact = x.double() @ linear.weight.double().T + (0 if linear.bias is None else linear.bias.double())
        plain = linear(x)
        linear.pack()
        packed = linear(x)
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(plain.double(), exact, **tolerance)
    torch.testing.assert_close(packed.double(), exact, **tolerance)
