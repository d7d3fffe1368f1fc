"""The norms of a model."""

from __future__ import annotations

from torch import Tensor

from quire import ops
from quire.models.spec import NormSpec


class Norm:
    """A norm with its weights `[size]`, of the activations' type.

    LayerNorm's weight_offset is added in that type, as transformers does; RMSNorm's in float32.
    """

    def __init__(self, spec: NormSpec, weight: Tensor, bias: Tensor | None = None) -> None:
        self.spec = spec
        is_folded = spec.kind == "layer" and spec.weight_offset != 0.0
        self.weight = weight + spec.weight_offset if is_folded else weight
        self._bias = bias

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        residual: Tensor | None = None,
        residual_scale: float = 1.0,
        out_scale: Tensor | None = None,
    ) -> Tensor:
        """Norms each row of x, or of residual += x * residual_scale where there is one. out, out_scale:
        values and scales of quantised rows."""
        spec = self.spec
        if spec.kind == "layer":
            return ops.layer_norm(
                x,
                self.weight,
                self._bias,
                spec.eps,
                residual,
                out,
                residual_scale=residual_scale,
                out_scale=out_scale,
            )
        return ops.rms_norm(
            x,
            self.weight,
            spec.eps,
            residual,
            out,
            residual_scale=residual_scale,
            weight_offset=spec.weight_offset,
            rounds_once=spec.rounds_once,
            out_scale=out_scale,
        )
