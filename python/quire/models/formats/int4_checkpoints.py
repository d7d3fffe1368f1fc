"""Four bits as AWQ, GPTQ, gpt-oss and compressed-tensors describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from quire.errors import describe
from quire.models.config_reader import ConfigReader
from quire.models.formats.int4 import ROW
from quire.models.formats.int4_storages import AwqStorage, GptqStorage, PackedStorage
from quire.models.formats.mxfp4 import BlocksStorage, PackedMxfp4Storage
from quire.models.formats.patterns import read_names
from quire.models.formats.plain import PLAIN_STORAGE
from quire.models.formats.quantization import Patterns, Quantization, Rule
from quire.models.spec import ProjectionKind
from quire.models.weight_formats import Storage

_INNER: frozenset[ProjectionKind] = frozenset({"inner"})
_GROUP_SIZES = range(8, 1 << 20)


def awq(reader: ConfigReader) -> Quantization:
    """modules_to_not_convert: parts of names."""
    if "w_bit" in reader:  # AutoAWQ's own file
        reader = reader.renamed({"bits": "w_bit", "group_size": "q_group_size"})
    _require(reader, bits=4, version="gemm", zero_point=True)
    size = _group_size(reader, 128)
    storage = AwqStorage(group_size=size, setting=reader.path("group_size"))
    return Quantization(
        method="awq",
        rules=(Rule(storage=storage, kinds=_INNER),),
        plain=read_names(reader, "modules_to_not_convert", lambda name: f".*{re.escape(name)}.*"),
    )


def gptq(reader: ConfigReader) -> Quantization:
    """lm_head: the head is quantised, too. Older programs wrote biases of zeros for projections without any;
    nothing reads them."""
    _require(reader, pack_dtype="int32", is_marlin_format=False)
    storage = _gptq_storage(
        reader,
        GptqStorage(
            group_size=128,
            is_symmetric=True,
            has_columns=False,
            is_one_less=_gptq_version(reader) == "gptq",
            setting=reader.path("group_size"),
        ),
    )
    rules = [*_dynamic_rules(reader, storage)]
    if reader.flag("lm_head", False):
        rules.append(Rule(storage=storage, kinds=frozenset({"head"})))
    chosen = _chosen(reader)
    rules.append(Rule(storage=storage, names=chosen) if chosen else Rule(storage=storage, kinds=_INNER))
    return Quantization(method="gptq", rules=tuple(rules), unread=("*.bias",))


def mxfp4(reader: ConfigReader) -> Quantization:
    """Experts alone are stored so. modules_to_not_convert: regular expressions of what names begin with."""
    return Quantization(
        method="mxfp4",
        rules=(Rule(storage=BlocksStorage(), names=(re.compile(r".*\.experts\..*"),)),),
        plain=read_names(reader, "modules_to_not_convert", lambda name: f"(?:{name}).*"),
    )


def pack_quantized(weights: ConfigReader) -> Storage:
    """compressed-tensors' int4."""
    _require(weights, num_bits=4, type="int")
    strategy = weights.get("strategy", str, "group" if weights.value("group_size") else "channel")
    if strategy not in ("group", "channel"):
        weights.refuse("strategy", strategy, '"group", "channel"')
    return PackedStorage(
        group_size=_group_size(weights, ROW) if strategy == "group" else ROW,
        is_symmetric=weights.flag("symmetric", True),
        has_columns=weights.value("actorder") in ("group", "dynamic") and strategy == "group",
        setting=weights.path("group_size"),
    )


def mxfp4_pack_quantized(weights: ConfigReader) -> Storage:
    """compressed-tensors' mxfp4."""
    _require(weights, num_bits=4, type="float", group_size=32, symmetric=True)
    return PackedMxfp4Storage()


def _gptq_version(reader: ConfigReader) -> str:
    key = "checkpoint_format" if reader.value("checkpoint_format") is not None else "format"
    version: str = reader.get(key, str, "gptq")
    if version not in ("gptq", "gptq_v2"):
        reader.refuse(key, version, '"gptq", "gptq_v2"')
    return version


def _gptq_storage(reader: ConfigReader, default: GptqStorage) -> GptqStorage:
    """What is not said is as in `default`."""
    _require(reader, bits=4)
    size = _group_size(reader, default.group_size)
    return replace(
        default,
        group_size=size,
        is_symmetric=reader.flag("sym", default.is_symmetric),
        has_columns=reader.flag("desc_act", default.has_columns) and size != ROW,
        setting=reader.path("group_size"),
    )


def _dynamic_rules(reader: ConfigReader, default: GptqStorage) -> Iterator[Rule]:
    """GPTQModel's settings for projections whose names begin as a regular expression says: after "-:" those
    that are not quantised, after "+:" or nothing those that are quantised otherwise."""
    dynamic = reader.inside("dynamic")
    for key in reader.get("dynamic", dict, {}):
        try:
            names = (re.compile(f"(?:{key.removeprefix('-:').removeprefix('+:')}).*"),)
        except re.error as error:
            dynamic.refuse(key, str(error), "a regular expression after -: or +:")
        is_plain = key.startswith("-:")
        storage = PLAIN_STORAGE if is_plain else _gptq_storage(dynamic.inside(key), default)
        yield Rule(storage=storage, names=names)


def _chosen(reader: ConfigReader) -> Patterns:
    """modules_in_block_to_quantize: ends of the names of what is quantised, in lists of what was quantised
    together; none where everything is."""
    key = "modules_in_block_to_quantize"
    lists = reader.get(key, list, [])
    names = [name for each in lists for name in (each if isinstance(each, list) else [each])]
    if not all(isinstance(name, str) for name in names):
        reader.refuse(key, lists, "lists of names of modules")
    return tuple(re.compile(rf".*\.{re.escape(name)}") for name in names)


def _group_size(reader: ConfigReader, default: int) -> int:
    size: int = reader.get("group_size", int, default)
    if size != ROW and size not in _GROUP_SIZES:
        reader.refuse("group_size", size, f"-1, or an integer in [{_GROUP_SIZES[0]}, {_GROUP_SIZES[-1]}]")
    return size


def _require(reader: ConfigReader, **values: object) -> None:
    """Refuse another value of a key than the one given here; what is not said is as given here."""
    for key, allowed in values.items():
        given = reader.get(key, type(allowed), allowed)
        if (given.lower() if isinstance(given, str) else given) != allowed:
            reader.refuse(key, given, describe(allowed))
