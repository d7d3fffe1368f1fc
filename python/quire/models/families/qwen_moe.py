"""Which layers of Qwen's mixtures have experts."""

from __future__ import annotations

from quire.models.families.builder import Builder


def sparse_layers(build: Builder) -> list[bool]:
    """Every decoder_sparse_step-th, but for mlp_only_layers."""
    step = build.config.count("decoder_sparse_step", 1)
    dense = build.config.get("mlp_only_layers", list, [])
    return [i not in dense and (i + 1) % step == 0 for i in range(build.num_layers)]
