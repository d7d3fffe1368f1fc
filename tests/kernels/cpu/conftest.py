"""Every kernel test runs on each instruction set of this machine, with one thread unless it sets more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from quire import _core, ops

# make test-fast runs the one that this machine uses.
ISAS = [
    isa if isa == ops.cpu_isa() else pytest.param(isa, marks=pytest.mark.slow)
    for isa in ops.supported_cpu_isas()
]


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ops.cpu_isa()
    ops.set_cpu_isa(request.param)
    yield request.param
    ops.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before, torch_before = _core.num_threads(), torch.get_num_threads()
    ops.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    ops.set_num_threads(before)
    torch.set_num_threads(torch_before)
