"""compressed-tensors: groups of projections, each with a description of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from quire.errors import describe
from quire.models.config_reader import ConfigReader
from quire.models.formats.fp8 import Fp8Storage, check_block_size
from quire.models.formats.int4_checkpoints import mxfp4_pack_quantized, pack_quantized
from quire.models.formats.patterns import exact_or_regex, read_names
from quire.models.formats.quantization import Quantization, Rule
from quire.models.weight_formats import Storage


def compressed_tensors(reader: ConfigReader) -> Quantization:
    sparsity = reader.inside("sparsity_config")
    if (sparse := sparsity.get("format", str, "dense")) != "dense":
        sparsity.refuse("format", sparse, '"dense"')
    transforms = reader.inside("transform_config")
    if transforms.get("config_groups", dict, {}):
        transforms.refuse("config_groups", transforms.value("config_groups"), "none")
    return Quantization(
        method="compressed-tensors",
        rules=tuple(_rules(reader)),
        plain=read_names(reader, "ignore", exact_or_regex),
    )


def _rules(reader: ConfigReader) -> Iterator[Rule]:
    groups = reader.inside("config_groups")
    for name in reader.get("config_groups", dict):
        group = groups.inside(name)
        if group.value("weights") is None:
            continue
        stored_as = group.value("format") or reader.value("format")
        if stored_as not in _FORMATS:
            group.refuse("format", stored_as, ", ".join(map(describe, _FORMATS)))
        # To some programs routers are no linear layers; where they are quantised the targets name them.
        is_usual = "Linear" in group.get("targets", list)
        yield Rule(
            storage=_FORMATS[stored_as](group.inside("weights")),
            kinds=frozenset({"inner", "head"} if is_usual else ()),
            names=read_names(group, "targets", exact_or_regex),
        )


def _fp8(weights: ConfigReader) -> Storage:
    for key, kind, allowed in (("type", str, "float"), ("num_bits", int, 8), ("symmetric", bool, True)):
        if (given := weights.get(key, kind, allowed)) != allowed:
            weights.refuse(key, given, describe(allowed))
    strategy = weights.get("strategy", str, "tensor")
    if strategy == "block":
        check_block_size(weights, "block_structure")
        return Fp8Storage("block")
    if strategy == "channel":
        return Fp8Storage("channel")
    if strategy != "tensor":
        weights.refuse("strategy", strategy, '"tensor", "channel", "block"')
    return Fp8Storage("tensor")


_FORMATS: Mapping[str, Callable[[ConfigReader], Storage]] = {
    "float-quantized": _fp8,
    "naive-quantized": _fp8,
    "pack-quantized": pack_quantized,
    "mxfp4-pack-quantized": mxfp4_pack_quantized,
}
