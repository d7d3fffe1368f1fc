"""Models of Triton's vLLM backend: `backend: "vllm"`, and 1/model.json with vLLM's engine arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quire.errors import ConfigError
from quire.migrate.findings import NEEDED, Findings
from quire.migrate.move import Move
from quire.migrate.pbtxt import FILE, ConfigJudge, parameters_of
from quire.migrate.settings import Places, judge_arguments
from quire.model_files import UnreadableFile, each_once, parse_json_object, read_bytes
from quire.triton.repository import ModelConfig, loaded_versions, protobuf, versions_of

ARGUMENTS = "model.json"
# The form before 23.10: a Python model of one's own beside its arguments.
OWN_ARGUMENTS = "vllm_engine_args.json"
_LORAS = "multi_lora.json"

# What the backend has and no text model needs.
_REFUSED = {
    "image": "requests that send it are refused by name",
    "embedding_request": "requests that send it are refused by name",
}

_PARAMETERS = {
    "ENABLE_VLLM_HEALTH_CHECK": "readiness follows the engine in any case",
    "FORCE_CPU_ONLY_INPUT_TENSORS": "inputs are read on the CPU in any case",
    "EXECUTION_ENV_PATH": "no vLLM is run",
}
_METRICS = "REPORT_CUSTOM_METRICS"

# What a request gets there that does not say otherwise: the backend passes on what a request holds, and vLLM
# fills in the rest, without a look at the checkpoint's generation_config.json.
_DEFAULTS: Mapping[str, tuple[Any, str]] = {
    "default_max_tokens": (16, "what a request without max_tokens gets there"),
    "generation_config": ("vllm", "a checkpoint's sampling defaults do not reach requests there"),
}


def is_vllm(folder: Path, config: ModelConfig | None) -> bool:
    """Also where config.pbtxt is missing or names no backend, but there is a model.json."""
    if config is None or not (config.backend or config.platform):
        return arguments_file(folder, ()) is not None
    return "vllm" in (config.backend, config.platform) or is_own(folder, config)


def is_own(folder: Path, config: ModelConfig | None) -> bool:
    """Whether a Python model of one's own reads the arguments."""
    if config is None or config.backend != "python":
        return False
    file = arguments_file(folder, versions_of(folder))
    if file is None or file.name == OWN_ARGUMENTS:
        return file is not None
    try:
        return b"vllm" in read_bytes(file.parent / "model.py")
    except (FileNotFoundError, UnreadableFile):
        return False


def arguments_file(folder: Path, versions: Collection[Path]) -> Path | None:
    """The file with the arguments: of the highest of `versions` (none: of all), or beside them."""
    for version in [*reversed(list(versions or versions_of(folder))), folder]:
        for name in (ARGUMENTS, OWN_ARGUMENTS):
            if (version / name).is_file():
                return version / name
    return None


def plan_vllm(
    repository: Path,
    folder: Path,
    config: ModelConfig | None,
    unknown: str | None,
    ignored: Collection[str],
    models: Mapping[str, str],
    tensors: Mapping[str, int],
    model: str | None = None,
) -> Move:
    """`models`: the packaged models' names and theirs here. `tensors`: of the ensemble that takes the place.
    `unknown`: what could not be read of the configuration. `model`: in place of that in model.json."""
    findings = Findings(ignored)
    move = Move(kind="vLLM", names=[folder.name], sources=[folder], findings=findings, models=models)
    here = folder.name
    if config is None:
        config = protobuf()[2].ModelConfig()
    else:
        ConfigJudge(findings, folder, tensors, _REFUSED).judge(config, unknown)
    versions = _judge_versions(move, folder, config)
    _judge_parameters(move, parameters_of(config), f"{here}/{FILE}")
    file = arguments_file(folder, versions)
    if file is None:
        where = f"{here}/{versions[-1].name if versions else 1}/{ARGUMENTS}"
        findings.unknown(where, NEEDED, "", f"no {ARGUMENTS}")
        return move
    where = str(file.relative_to(repository))
    values = _read(file)
    # Adapters are read where the arguments enable them, which they are asked about by name.
    if (file.parent / _LORAS).exists():
        findings.neutral(str((file.parent / _LORAS).relative_to(repository)), _LORAS, "", "see enable_lora")
    if is_own(folder, config):
        move.kind = "vLLM in a Python model"
        code = file.parent / "model.py" if (file.parent / "model.py").exists() else folder / "1" / "model.py"
        note = "its code is not moved, only the arguments: clients get the inputs of Triton's vLLM backend"
        findings.missing(str(code.relative_to(repository)), "model.py", "", note)
    move.settings = judge_arguments(findings, where, values, Places(repository, (file.parent, folder)))
    for key, (value, note) in _DEFAULTS.items():
        if move.settings.get(key) in (None, "auto"):
            move.settings[key] = value
            findings.taken("", key, value, note)
    if model is not None:
        move.settings["model"] = model
        findings.taken("", "--model", model)
    elif "model" not in values:
        findings.unknown(where, NEEDED, "", "missing: a folder or a Hugging Face id, also by --model")
    return move


def _judge_versions(move: Move, folder: Path, config: ModelConfig) -> list[Path]:
    """The one that Triton loads."""
    versions = loaded_versions(folder, config)
    where, policy = f"{folder.name}/{FILE}", config.version_policy
    text = ", ".join(version.name for version in versions)
    if len(versions) > 1:
        note = f"loads versions {text}; an ensemble is one version: with --ignore the highest"
        move.findings.missing(where, "version_policy", text, note)
    elif policy.WhichOneof("policy_choice"):
        move.findings.taken(where, "version_policy", text)
    if versions:
        move.version = versions[-1].name
    return versions


def _judge_parameters(move: Move, parameters: Mapping[str, str], file: str) -> None:
    for key, value in parameters.items():
        name = f"parameters.{key}"
        if key in _PARAMETERS:
            move.findings.neutral(file, name, value, _PARAMETERS[key])
        elif key == _METRICS:
            is_on = value.strip().lower() in ("1", "true", "yes", "on")
            move.parameters["generation"] = {_METRICS: "yes" if is_on else "no"}
            move.findings.taken(file, name, value)
        elif key == "GPU_DEVICE_IDS" and value.strip() in ("", "0"):
            move.findings.neutral(file, name, value, "an engine takes the first GPU that it sees")
        elif key == "GPU_DEVICE_IDS":
            move.findings.missing(file, name, value, "choose it by CUDA_VISIBLE_DEVICES of the server")
        else:
            move.findings.missing(file, name, value)


def _read(file: Path) -> dict[str, Any]:
    """Raises ConfigError."""

    def refuse(key: str) -> ConfigError:
        return ConfigError(file, "got the key twice; allowed: once", key=key)

    try:
        allowed = "a JSON object with engine arguments"
        return parse_json_object(read_bytes(file), file, allowed, object_pairs_hook=each_once(refuse))
    except UnreadableFile as error:
        raise ConfigError(file, error.problem) from None
