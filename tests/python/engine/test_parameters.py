"""The table of a model's parameters, and the tensors that it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from quire.models.config import load_model_config
from quire.models.parameters import ParameterTable, Weights

CPU = torch.device("cpu")
LAYER = "model.layers.1"


def table(folder: Path) -> ParameterTable:
    return load_model_config(folder).parameters(torch.bfloat16)


def test_fused_projections_lie_one_after_the_other(llama_folder: Callable[..., Path]) -> None:
    """The places of queries, keys and values, weights and biases, are rows of one tensor; so are those of
    gate and up."""
    weights = Weights(table(llama_folder(attention_bias=True, mlp_bias=True)), CPU)
    places = weights.places()
    for number, place in enumerate(places.values()):
        place.views[0].fill_(number)
    layer = weights.table.spec.layers[1]
    for linear, names in (
        (layer.attention.qkv, [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]),
        (layer.attention.o, [f"{LAYER}.self_attn.o_proj"]),
        (layer.mlp.up, [f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"]),
        (layer.mlp.down, [f"{LAYER}.mlp.down_proj"]),
    ):
        tensors = weights.linear(linear)
        assert {"weight", "bias"} == set(tensors)
        for role, tensor in tensors.items():
            assert tensor.is_contiguous()
            assert torch.equal(torch.cat([places[f"{name}.{role}"].views[0] for name in names]), tensor)


def test_a_tied_head_is_the_embedding(llama_folder: Callable[..., Path]) -> None:
    """One tensor, counted once, loaded once, and there until both have taken it."""
    weights = Weights(table(llama_folder(tie_word_embeddings=True)), CPU)
    assert "lm_head.weight" not in weights.places()
    head = weights.linear(weights.table.spec.head)["weight"]
    assert weights.embedding().data_ptr() == head.data_ptr()
    assert (
        sum(place.views[0].nbytes for place in weights.places().values()) + head.nbytes
        == weights.table.num_bytes
    )


def test_what_is_taken_is_forgotten(llama_folder: Callable[..., Path]) -> None:
    """An executor that lays a weight out anew frees the first one; a tensor cannot be taken twice."""
    weights = Weights(table(llama_folder()), CPU)
    attention = weights.table.spec.layers[1].attention
    weights.linear(attention.o)
    assert f"{LAYER}.self_attn.o_proj.weight" not in weights.places()
    with pytest.raises(KeyError):
        weights.linear(attention.o)


def test_what_tensor_parallelism_divides(llama_folder: Callable[..., Path]) -> None:
    """A projection's outputs with their biases, or its inputs, whose bias every rank has; no norm."""
    parameters = table(llama_folder(attention_bias=True, mlp_bias=True))
    axes = {
        source.name: parameter.split_axis
        for group in parameters
        for source in group.sources
        for parameter in group.tensors.values()
        if [parameter.name] == [target.name for target in source.targets]
    }
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert (0, 0) == (axes[f"{LAYER}.{name}.weight"], axes[f"{LAYER}.{name}.bias"])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert (1, None) == (axes[f"{LAYER}.{name}.weight"], axes[f"{LAYER}.{name}.bias"])
    assert {None} == {axis for name, axis in axes.items() if "norm" in name}
    assert (0, 0) == (axes["model.embed_tokens.weight"], axes["lm_head.weight"])
