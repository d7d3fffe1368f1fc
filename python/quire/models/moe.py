"""Mixture of experts: each token goes through the few experts that its router chooses."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from quire import ops
from quire.models.activations import Rows
from quire.models.linear import GateUp, Linear
from quire.models.mlp import Mlp
from quire.models.parameters import Weights
from quire.models.spec import LinearSpec, MoeSpec


class Moe:
    """A router, experts, and the expert that all tokens have, where there is one."""

    def __init__(
        self,
        spec: MoeSpec,
        weights: Weights,
        make_linear: Callable[[LinearSpec], Linear],
        make_gate_up: Callable[[LinearSpec], GateUp],
    ) -> None:
        self._spec = spec
        self._router = make_linear(spec.router)
        self._selection_bias = weights.selection_bias(spec)
        up, down = weights.experts(spec.up), weights.experts(spec.down)
        self._up, self._up_bias = up["weight"], up.get("bias")
        self._down, self._down_bias = down["weight"], down.get("bias")
        self._shared = Mlp(spec.shared, make_linear, make_gate_up) if spec.shared else None
        self._shared_gate = make_linear(spec.shared_gate) if spec.shared_gate else None

    def __call__(self, x: Tensor, rows: Rows, out: Tensor | None) -> Tensor:
        """x, and what is returned (`out` or a new tensor): ``[num_rows, hidden_size]``."""
        num_rows, places = x.size(0), rows.experts
        logits = gate = chosen = None
        if places is not None:
            logits, gate = places.logits[:num_rows], places.shared_gate[:num_rows]
            chosen = places.ids[:num_rows], places.weights[:num_rows]
        ids, weights = ops.moe_route(
            self._router(x, logits),
            top_k=self._spec.top_k,
            scoring=self._spec.scoring,
            renormalize=self._spec.renormalizes,
            scale=self._spec.scale,
            bias=self._selection_bias,
            num_groups=self._spec.num_groups,
            top_groups=self._spec.top_k_groups,
            out=chosen,
        )
        return ops.moe_mlp(
            x,
            ids,
            weights,
            gate_up=self._up,
            gate_up_bias=self._up_bias,
            down=self._down,
            down_bias=self._down_bias,
            activation=self._spec.activation,
            shared=self._shared(x, rows, out) if self._shared else None,
            shared_gate=self._shared_gate(x, gate) if self._shared_gate else None,
            out=out,
            workspace=places,
        )

    def num_scales(self, num_rows: int) -> int:
        """The router, the experts and the shared expert read one x."""
        return 0

    def add_to(self, x: Tensor, rows: Rows) -> Tensor:
        """As Mlp.add_to(): the norm that follows adds it."""
        return self(x, rows, rows.added)
