"""The MLP of a layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from quire import ops
from quire.models.activations import Rows, cut
from quire.models.linear import GateUp, Input, Linear, input_of
from quire.models.spec import LinearSpec, MlpSpec


class Mlp:
    """down(activation(gate) * up), or without a gate down(activation(up))."""

    def __init__(
        self,
        spec: MlpSpec,
        make_linear: Callable[[LinearSpec], Linear],
        make_gate_up: Callable[[LinearSpec], GateUp],
    ) -> None:
        self._activation = spec.activation
        self._size = spec.intermediate_size
        self._is_gated = spec.is_gated
        self._gate_up = make_gate_up(spec.up) if spec.is_gated and spec.activation == "silu" else None
        self._up = make_linear(spec.up) if self._gate_up is None else self._gate_up
        self._down = make_linear(spec.down)

    def __call__(self, x: Input, rows: Rows, out: Tensor | None) -> Tensor:
        return self._down(self._inner(x, rows), out)

    def add_to(self, x: Input, rows: Rows) -> Tensor | None:
        """See Linear.add_to()."""
        return self._down.add_to(self._inner(x, rows), rows.residual, rows.added)

    def num_scales(self, num_rows: int) -> int:
        """See Linear.num_scales()."""
        return self._up.num_scales(num_rows)

    def _inner(self, x: Input, rows: Rows) -> Input:
        """What down reads."""
        x = input_of(self._up, x, rows.quantized_hidden)
        inner = cut(rows.mlp, self._size)
        if self._gate_up is not None:
            self._gate_up.silu_mul(x, self._scratch(rows), inner)
        elif self._is_gated:
            ops.act_mul(self._up(x, self._scratch(rows)), inner, activation=self._activation)
        else:
            up = self._up(x, None if rows.gate_up is None else inner)
            ops.activate(up, inner, activation=self._activation)
        return input_of(self._down, inner, rows.quantized_inner)

    def _scratch(self, rows: Rows) -> Tensor | None:
        return None if rows.gate_up is None else cut(rows.gate_up, 2 * self._size)
