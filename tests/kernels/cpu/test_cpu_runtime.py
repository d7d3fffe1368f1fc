"""Instruction sets and threads."""

from __future__ import annotations

import threading

import pytest
import torch
from kernel_reference import REFUSED, make_case
from quire import _core, ops


def test_isa_can_be_forced(isa: str) -> None:
    """The portable path is always there, and the one asked for is the one in use."""
    assert ops.supported_cpu_isas()[0] == "portable"
    assert ops.cpu_isa() == isa


def test_unknown_isa_is_named() -> None:
    """The error lists what this machine can run."""
    with pytest.raises(REFUSED, match=r'cpu_isa: got "sse9"; allowed: portable'):
        ops.set_cpu_isa("sse9")


@pytest.mark.parametrize("num_threads", [0, -1, 257])
def test_bad_thread_count_is_named(num_threads: int) -> None:
    """Outside 1 to 256 nothing changes."""
    with pytest.raises(
        (ValueError, RuntimeError), match=rf"num_threads: got {num_threads}; allowed: 1 to 256"
    ):
        ops.set_num_threads(num_threads)
    assert _core.num_threads() == 1


def test_resizing_between_calls() -> None:
    """Growing and shrinking the pool between kernels changes no result."""
    case = make_case([(200, 200), (1, 900)])
    expected = case.run()
    for num_threads in (2, 1, 4, 3, 2, 2, 1):
        ops.set_num_threads(num_threads)
        assert _core.num_threads() == num_threads
        assert torch.equal(case.run(), expected)


def test_two_callers_at_once() -> None:
    """Kernels called from several Python threads at a time, each with work for the pool, stay correct."""
    ops.set_num_threads(2)
    case = make_case([(200, 200), (1, 900)])
    expected = case.run()
    equal: list[bool] = []

    def work() -> None:
        for _ in range(30):
            equal.append(torch.equal(case.run(), expected))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 90
