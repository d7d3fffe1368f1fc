"""What the tokenizers' model.py hand to Triton's Python backend; the work is in quire.triton.tokenizer_stage.

Only Triton's stub process can import this: it brings triton_python_backend_utils.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from quire.triton.tokenizer_stage import TokenizerStage

pb_utils: Any = importlib.import_module("triton_python_backend_utils")


class TritonPythonModel:
    """Of a model folder whose config.pbtxt says whose inputs it has."""

    def initialize(self, args: Mapping[str, str]) -> None:
        self.stage = TokenizerStage.from_args(args)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return self.stage.execute(requests, pb_utils)
