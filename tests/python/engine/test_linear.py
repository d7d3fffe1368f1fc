"""Projections, with the weight laid out anew and as it is."""

from __future__ import annotations

import pytest
import torch
from quire.models.cpu.linear import CpuLinear


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 16, 33, 300])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bias: bool, num_rows: int, is_packed: bool
) -> None:
    """x @ weight.T + bias, with oneDNN's layout and, where there is no oneDNN, without."""
    if not is_packed:
        monkeypatch.setattr(torch._C, "_has_mkldnn", False)
    torch.manual_seed(0)
    weight = torch.randn(80, 48, dtype=dtype)
    given = torch.randn(80, dtype=dtype) if bias else None
    x = torch.randn(num_rows, 48, dtype=dtype)
    with torch.inference_mode():
        exact = x.double() @ weight.double().T + (0 if given is None else given.double())
        product = CpuLinear(weight, given)(x)
    tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    torch.testing.assert_close(product.double(), exact, **tolerance)
