"""Model folders and repositories with sample tokenizers, and a stand-in for Triton's Python module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sample_tokenizers import TOKENIZERS, train_byte_level, write_model
from tokenizers import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.fixture(scope="session")
def tokenizers_by_name() -> dict[str, Tokenizer]:
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(scope="session")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level tokenizer and a limit of 64 tokens, without weights."""
    return write_model(tmp_path_factory.mktemp("model") / "byte-level", train_byte_level())


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path, Path], Path]:
    """folder, model -> a repository with the real tokenizer model, and a generation model's settings."""

    def make(folder: Path, model: Path) -> Path:
        shutil.copytree(REPOSITORY / "tokenizer", folder / "tokenizer")
        settings = folder / "generation" / "1" / "model.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"model": str(model)}))
        return folder

    return make


class FakeTensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name = name
        self._value = value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value


class FakeError:
    UNKNOWN, INTERNAL, INVALID_ARG = 0, 1, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message = message
        self.code = code


class FakeResponse:
    def __init__(
        self, output_tensors: list[FakeTensor] | None = None, error: FakeError | None = None
    ) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error


class FakeRequest:
    """inputs: name -> value or values; strings become bytes, as Triton hands them over."""

    def __init__(
        self,
        inputs: dict[str, object],
        parameters: dict[str, object] | None = None,
        requested_outputs: tuple[str, ...] = ("input_ids",),
    ) -> None:
        self._inputs = [FakeTensor(name, _as_tensor(value)) for name, value in inputs.items()]
        self._parameters = parameters or {}
        self._requested_outputs = requested_outputs

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return list(self._requested_outputs)

    def parameters(self) -> str:
        return json.dumps(self._parameters)


def _as_tensor(value: object) -> np.ndarray:
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, bool) for item in items):
        return np.asarray(items)
    return np.asarray([item.encode() if isinstance(item, str) else item for item in items], np.object_)


@pytest.fixture
def pb_utils() -> SimpleNamespace:
    return SimpleNamespace(
        Tensor=FakeTensor, TritonError=FakeError, InferenceResponse=FakeResponse, Request=FakeRequest
    )
