"""Triton's Python backend calls this; the work is in quire.triton.tokenizer_stage."""

from quire.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
