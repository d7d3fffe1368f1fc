"""Says of models and folders that are not ours what they are, whether tritonserver could load them here, and
which command moves or serves them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from quire.errors import QuireError, describe
from quire.migrate.vllm import arguments_file, is_own
from quire.model_folder import CONFIG
from quire.triton.installation import find_installation
from quire.triton.problem import Findings
from quire.triton.repository import ModelConfig, versions_of

# Backends that serve LLMs as ours does.
_LLMS = {"vllm": "Triton's vLLM backend", "tensorrtllm": "TensorRT-LLM"}

# Backends of models whose configuration names a platform, or of which there is only a file.
_PLATFORMS = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
_FILES = {
    "model.onnx": "onnxruntime",
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.dali": "dali",
    "model.py": "python",
}


def check_folder(findings: Findings) -> bool:
    """Whether a folder may be a repository: it is no model's folder, of Triton or of Hugging Face."""
    folder = findings.file
    if (folder / "config.pbtxt").is_file():
        findings.problem(
            f"is the folder of one model; allowed: the repository that it is in, {folder.parent}"
        )
    elif any(folder.glob("*.engine")):
        findings.problem(
            "is an engine that TensorRT-LLM compiled; allowed: the Hugging Face folder that it was built "
            "from: `quire serve --model FOLDER`"
        )
    elif (folder / CONFIG).is_file():
        findings.problem(f"is a model, and no repository of models: `quire serve --model {folder}`")
    else:
        return True
    return False


def check_foreign(findings: Findings, folder: Path, config: ModelConfig) -> None:
    """A model of another backend, which is Triton's business if it has that backend here."""
    field, name = ("backend", config.backend) if config.backend else ("platform", config.platform)
    backend = name if config.backend else _PLATFORMS.get(name, name)
    if config.backend == "python":
        if is_own(folder, config) and importlib.util.find_spec("vllm") is None:
            file = arguments_file(folder, versions_of(folder))
            what = f"a model.py that runs vLLM, by {file.name if file else 'its arguments'}"
            findings.problem(f"backend: got {what}; {_missing('the package vllm', _way(folder))}")
    elif backend and not _is_installed(backend):
        given = f"{field}: got {describe(name)}"
        if backend in _LLMS:
            findings.problem(f"{given}, a model of {_LLMS[backend]}; {_missing('that', _way(folder))}")
        else:
            findings.problem(
                f"{given}; {_missing('that backend', 'the backend, or a repository without it')}"
            )


def check_without_config(findings: Findings, folder: Path) -> None:
    """A model whose configuration Triton completes."""
    names = [path.name for version in versions_of(folder) for path in version.iterdir()]
    backend = next((_FILES[name] for name in names if name in _FILES), None)
    if backend is None or _is_installed(backend):
        findings.note("no such file; Triton completes the configuration, or refuses the model")
    else:
        way = "the backend, or a repository without it"
        findings.problem(f"no such file, and a model of the backend {backend}; {_missing('that', way)}")


def way_without_config(folder: Path) -> str:
    """What serves a folder that has neither a configuration nor a model that Triton could know."""
    if arguments_file(folder, ()):
        return f'one with `backend: "vllm"`, and then {_way(folder)}'
    if any(folder.glob("*/config.pbtxt")):
        return f"the model's configuration; {folder} holds models: `quire check {folder}`"
    return "the model's configuration"


def _way(folder: Path) -> str:
    return f"what `quire migrate {folder.parent} --output DIR` writes"


def _missing(what: str, allowed: str) -> str:
    return f"tritonserver does not have {what} here and will refuse it; allowed: {allowed}"


def _is_installed(backend: str) -> bool:
    try:
        return (find_installation().backends / backend).is_dir()
    except QuireError:
        return True  # said once, by the command
