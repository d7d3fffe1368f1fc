"""Products of quantised rows and a float8 weight, by whichever kernel has the number of rows."""

from __future__ import annotations

import pytest
import torch
from quire import ops
from torch import Tensor

pytestmark = pytest.mark.gpu

IN_SIZE = 512


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_rows", [17, 64, 65, 128, 300, 4000])
@pytest.mark.parametrize("out_size", [1032, 1024])  # with half of 1032, SiLU * mul is a kernel of its own
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_blocked", [False, True])
def test_product_and_silu_mul(num_rows: int, out_size: int, has_bias: bool, is_blocked: bool) -> None:
    """Both are those of the dequantised weight, but for what quantising the rows costs."""
    from quire.models.cuda.float8_product import Float8Product  # needs _cuda

    torch.manual_seed(num_rows)
    weight = torch.randn(out_size, IN_SIZE, device="cuda").to(torch.float8_e4m3fn)
    scale = (1 + torch.rand(out_size, IN_SIZE // 128 if is_blocked else 1, device="cuda")) * IN_SIZE**-0.5
    bias = torch.randn(out_size, device="cuda").bfloat16() if has_bias else None
    x = torch.randn(num_rows, IN_SIZE, device="cuda").bfloat16()
    expected = x.float() @ (weight.float() * scale.repeat_interleave(IN_SIZE // scale.size(1), 1)).t()
    if bias is not None:
        expected += bias.float()

    product = Float8Product(ops.float8_columns(weight), scale if is_blocked else scale[:, 0], bias)
    rows = ops.quantize_rows(x, num_scales=product.num_scales)
    out = torch.full((num_rows, out_size), torch.nan, device="cuda", dtype=torch.bfloat16)
    assert product(rows, out) is out
    assert relative_error(out, expected) < 0.04

    gate, up = expected.chunk(2, dim=1)
    inner = torch.full((num_rows, out_size // 2), torch.nan, device="cuda", dtype=torch.bfloat16)
    product.silu_mul(rows, torch.empty_like(out), inner)
    assert relative_error(inner, torch.nn.functional.silu(gate) * up) < 0.06
