"""Engine settings: generation/1/model.json, with vLLM's names. Validated once, here, and trusted after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from quire.engine_arguments import ARGUMENTS, SPELLINGS, plain
from quire.errors import ConfigError, describe, did_you_mean
from quire.field import INT32_MAX, INT64_MAX
from quire.model_files import UnreadableFile, each_once, parse_json_object, read_bytes
from quire.model_path import resolve_model

PositiveInt32 = Annotated[int, Field(ge=1, le=INT32_MAX)]


class EngineConfig(BaseModel):
    """Settings of one engine. Unknown keys are refused, and vLLM's other arguments where they ask for
    something. A text that spells a boolean or a number is that; null is the default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )

    model: Annotated[str, Field(min_length=1)]
    """A folder or a GGUF file (absolute, or relative to this file), an embedded model's name, or a Hugging
    Face id."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of a Hugging Face id. null: main."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Whose tokenizer and chat templates: a folder or a name, as for model. null: the model's own."""
    tokenizer_revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit of the tokenizer. null: main, or the model's where the tokenizer is its own."""
    download_dir: Annotated[str, Field(min_length=1)] | None = None
    """Folder for downloads, absolute or relative to this file. null: the Hugging Face cache."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. auto: the first GPU where there is one and the CUDA kernels are built."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and activations. auto: the checkpoint's; on a GPU bfloat16 for a float32
    checkpoint, on a CPU float32 where it has no instructions for bfloat16."""
    quantization: (
        Literal["fp8", "compressed-tensors", "modelopt", "awq", "awq_marlin", "gptq", "gptq_marlin", "mxfp4"]
        | None
    ) = None
    """How weights are stored. null: as the checkpoint says. fp8: those of a checkpoint that is not quantised
    become e4m3 while they are loaded, with a scale for each output. Any other value must be the checkpoint's
    method; awq_marlin and gptq_marlin are vLLM's names for awq and gptq."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the KV cache. auto: dtype. fp8: e4m3, half the memory, with the checkpoint's scales or 1; GPU
    only."""
    max_model_len: PositiveInt32 | None = None
    """Prompt + output tokens of one request. null: the model's own limit."""
    max_num_seqs: PositiveInt32 = 256
    """Requests running at once."""
    max_num_batched_tokens: PositiveInt32 = 2304
    """Tokens of one step; without enable_chunked_prefill by default at least max_model_len. More delay the
    tokens of running requests when prompts come; fewer delay the first token of many prompts that come at
    once."""
    block_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens of one KV block."""
    num_gpu_blocks_override: PositiveInt32 | None = None
    """KV blocks in the pool. null: as many as fit into kv_cache_memory_bytes."""
    kv_cache_memory_bytes: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    """Memory of the KV cache. null: 512 MiB on a CPU, what gpu_memory_utilization leaves on a GPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that this engine may take, whatever else is on the GPU. The models of one
    server share a GPU: together at most 1."""
    enforce_eager: bool = False
    """No CUDA graphs: a faster start and a slower engine."""
    batch_invariant: bool = False
    """Logits of a request are bitwise the same whatever runs beside it, as long as its tokens are cut into
    steps in the same way: a single token that is left of a prompt (after a cached prefix or a chunk), or is
    computed again (preemption), goes to another kernel. No prefix caching, no chunked prefill and blocks for
    all requests rule that out. Slower; GPU only."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Which request goes first. fcfs: the one that came first; a request's priority must be 0. priority: the
    one with the lowest priority, then the one that came first; it may preempt running requests of a worse
    priority, which are computed again later."""
    enable_prefix_caching: bool = True
    """Reuse KV blocks of equal prompt beginnings."""
    enable_chunked_prefill: bool = True
    """Split long prompts over several steps. false: a prompt is computed whole."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of blocks kept free when a request is admitted."""
    seed: Annotated[int, Field(ge=0, le=INT64_MAX)] = 0
    """Seeds of requests that give none are drawn from this one."""
    num_threads: PositiveInt32 | None = None
    """CPU threads. null: all cores."""
    generation_config: Literal["auto", "none", "vllm"] = "auto"
    """Defaults for what a request leaves out. auto: those of the checkpoint's generation_config.json. none,
    or vLLM's name for it, vllm: those of the table of request fields."""
    override_generation_config: dict[str, Any] = {}
    """Defaults in place of the checkpoint's: {"temperature": 0.6}. null: that of the table of fields.
    max_new_tokens is default_max_tokens under the name that vLLM has for it, and counts more."""
    default_max_tokens: PositiveInt32 | None = None
    """What a request without max_tokens gets; 16 is vLLM's. null: max_output_tokens."""
    max_output_tokens: PositiveInt32 | None = None
    """The largest max_tokens of a request. null: what fits into the context."""
    trust_request_chat_template: bool = False
    """A request may bring its own chat template, a program that runs in a sandbox, for as long as one request
    may tokenize. false: only names of the model's templates."""
    load_format: Literal["auto", "dummy"] = "auto"
    """dummy: random weights, for measuring."""
    disable_log_stats: bool = False
    """No metrics of this engine on /metrics, and no line in the log with throughput and cache use."""

    _file: Path | None = PrivateAttr(default=None)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**_settings_in(values))
        except ValidationError as error:
            raise _config_error(error) from None

    @classmethod
    def from_file(cls, path: Path | str) -> EngineConfig:
        """Read a model.json. Raises ConfigError with file, key, what was given and what is allowed."""
        path = Path(path)
        try:
            return cls.from_content(read_bytes(path), path)
        except FileNotFoundError:
            raise ConfigError(path, "no such file; allowed: a JSON file with engine settings") from None
        except UnreadableFile as error:
            raise ConfigError(path, error.problem) from None

    @classmethod
    def from_content(cls, content: bytes, path: Path | str) -> EngineConfig:
        """Does what from_file() does with the content that `path` had when it was read."""
        path = Path(path)
        try:
            allowed = "a JSON object with engine settings"
            config = cls(
                **parse_json_object(content, path, allowed, object_pairs_hook=each_once(_given_twice))
            )
        except UnreadableFile as error:
            raise ConfigError(path, error.problem) from None
        except ConfigError as error:
            raise ConfigError(path, error.problem, key=error.key) from None
        config._file = path.resolve()
        return config

    @property
    def file(self) -> Path | None:
        """The model.json that this was read from."""
        return self._file

    def model_folder(self, *, download: bool = True) -> Path:
        """The model's folder, downloaded when it is a Hugging Face id. Raises ModelNotFound."""
        return self._folder(self.model, self.revision, "model", download, self.load_format != "dummy")

    def tokenizer_folder(self, model_folder: Path, *, download: bool = True) -> Path:
        """The tokenizer's, where that is not the model's own. Raises ModelNotFound."""
        if self.tokenizer in (None, self.model) and self.tokenizer_revision in (None, self.revision):
            return model_folder
        name = self.tokenizer or self.model
        return self._folder(name, self.tokenizer_revision, "tokenizer", download, has_weights=False)

    def _folder(
        self, name: str, revision: str | None, setting: str, download: bool, has_weights: bool
    ) -> Path:
        base = self._file.parent if self._file else None
        cache = self.download_dir and (base or Path.cwd()) / Path(self.download_dir).expanduser()
        return resolve_model(
            name,
            base,
            revision=revision,
            cache=cache or None,
            download=download,
            has_weights=has_weights,
            setting=setting,
        )


def _settings_in(values: dict[str, Any]) -> dict[str, Any]:
    """`values` without vLLM's arguments that ask for nothing, in the form of the settings."""
    settings = {}
    for name, value in values.items():
        if (argument := ARGUMENTS.get(name)) is not None:
            if problem := argument.problem(value):
                raise ConfigError(None, problem, key=name)
        elif (field := EngineConfig.model_fields.get(name)) is None:
            settings[name] = value
        else:
            types = _types_of(field.annotation)
            # Templates write "" for a text that is not given.
            is_given = value is not None and not (value == "" and type(None) in types)
            if is_given or field.is_required():
                settings[name] = _in_its_form(name, value, types)
    return settings


def _in_its_form(name: str, value: object, types: set[object]) -> object:
    if isinstance(value, str) and value in SPELLINGS.get(name, {}):
        return SPELLINGS[name][value]
    spelled = plain(value)
    # A whole number is fine where a number is expected; true is none.
    fits = type(spelled) in types or (type(spelled) is int and float in types)
    return spelled if fits and str not in types else value


def _types_of(annotation: Any) -> set[object]:
    """The types in `int | None`, with or without a range."""
    arguments = get_args(annotation)
    return set().union(*map(_types_of, arguments)) if arguments else {annotation}


def _given_twice(key: str) -> ConfigError:
    return ConfigError(None, "got the key twice; allowed: once", key=key)


def _config_error(error: ValidationError) -> ConfigError:
    """The first of pydantic's errors in our words."""
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else None
    known = EngineConfig.model_fields
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(key), [*known, *ARGUMENTS])
        problem = f"unknown key{hint}; allowed: {', '.join(known)}, and vLLM's other engine arguments"
    elif first["type"] == "missing":
        problem = f"missing; allowed: {_allowed(str(key))}"
    else:
        problem = f"got {describe(first['input'])}; allowed: {_allowed(str(key))}"
    return ConfigError(None, problem, key=key)


def _allowed(key: str) -> str:
    """What a key may hold, from its JSON schema."""
    schema = EngineConfig.model_json_schema()["properties"][key]
    options = schema.get("anyOf", [schema])
    return " or ".join(_option(option) for option in options)


def _option(option: dict[str, Any]) -> str:
    if "enum" in option:
        return ", ".join(json.dumps(value) for value in option["enum"])
    name = {
        "integer": "an integer",
        "number": "a number",
        "boolean": "true or false",
        "string": "a non-empty string",
        "null": "null",
        "object": "a JSON object",
    }[option["type"]]
    if "exclusiveMinimum" in option:
        return f"{name} in ({option['exclusiveMinimum']}, {option['maximum']}]"
    if "minimum" not in option:
        return name
    if "exclusiveMaximum" in option:
        return f"{name} in [{option['minimum']}, {option['exclusiveMaximum']})"
    return f"{name} in [{option['minimum']}, {option['maximum']}]"
