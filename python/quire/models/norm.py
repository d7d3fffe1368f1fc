"""The norms of a model."""

from __future__ import annotations

from torch import Tensor

from quire import ops
from quire.models.spec import NormSpec


class Norm:
    """A norm with its weights `[size]`, of the activations' type."""

    def __init__(self, spec: NormSpec, weight: Tensor, bias: Tensor | None = None) -> None:
        self.spec = spec
        self.weight = weight if spec.weight_offset == 0.0 else weight + spec.weight_offset
        self._bias = bias

    def __call__(
        self, x: Tensor, out: Tensor, residual: Tensor | None = None, residual_scale: float = 1.0
    ) -> Tensor:
        """Of each row of x, or with a residual of residual += x * residual_scale."""
        eps = self.spec.eps
        if self.spec.kind == "rms":
            return ops.rms_norm(x, self.weight, eps, residual, out, residual_scale=residual_scale)
        return ops.layer_norm(x, self.weight, self._bias, eps, residual, out, residual_scale=residual_scale)
