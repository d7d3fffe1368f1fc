"""Names of projections as descriptions of quantisation write them, as patterns of the whole name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from quire.models.config_reader import ConfigReader
from quire.models.formats.quantization import Patterns


def read_names(reader: ConfigReader, key: str, pattern_of: Callable[[str], str]) -> Patterns:
    """A list of names; null is an empty one."""
    patterns = []
    for name in reader.get(key, list, []):
        try:
            patterns.append(re.compile(pattern_of(name)))
        except (TypeError, AttributeError, re.error):
            reader.refuse(key, name, "names of modules, or regular expressions where the method has them")
    return tuple(patterns)


def exact_or_regex(name: str) -> str:
    """compressed-tensors': "re:" and what a name begins with, or the name."""
    return f"(?:{name[3:]}).*" if name.startswith("re:") else re.escape(name)


def inside(name: str) -> str:
    """The fp8 method's: whole parts of a dotted name."""
    return rf"(?:.*\.)?{re.escape(name)}(?:\..*)?"


def wildcard(name: str) -> str:
    """ModelOpt's: * is anything; what is inside of a module is meant, too."""
    return f"{fnmatch.translate(name)}|{fnmatch.translate(f'{name}.*')}"
