"""What the load of a tokenizer model reads, and holds until the next load.

The first worker of a load reads it from files; it goes through the server as bytes to those that take the
place of dead ones, so files that change meanwhile mean nothing to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quire.errors import ConfigError, InvalidArgument, ModelNotFound, describe
from quire.model_files import read_json_object
from quire.text_bounds import bytes_per_token
from quire.tokenizer import Tokenizer
from quire.tokenizer_files import TokenizerFiles
from quire.triton.tokenizer_stage import DIALECTS, TokenizerStage


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The generation model's settings, as far as tokenizing needs them, and its tokenizer."""

    folder: str  # of the tokenizer
    model: str  # as the settings name it
    tokenizer: TokenizerFiles
    max_model_len: int | None
    vocab_size: int | None
    bytes_per_token: int | None  # of a prompt at most, see quire.text_bounds
    trust_request_chat_template: bool = False

    @classmethod
    def read(cls, model_folder: Path, parameters: Mapping[str, str]) -> TokenizerSettings:
        """`model_folder`: of the tokenizer model, beside that of its generation model, which the parameter
        generation_model (default "generation") names."""
        from quire.config import EngineConfig  # costs a quarter of a start, which those after the first save

        file = newest_settings(model_folder.parent / parameters.get("generation_model", "generation"))
        config = EngineConfig.from_file(file)
        folder = config.model_folder()
        tokenizer_folder = config.tokenizer_folder(folder)
        tokenizer = Tokenizer(tokenizer_folder)
        model = _model_config(folder)
        return cls(
            folder=str(tokenizer_folder),
            model=config.model,
            tokenizer=tokenizer.files,
            max_model_len=config.max_model_len or _number(model, "max_position_embeddings"),
            vocab_size=_number(model, "vocab_size"),
            bytes_per_token=bytes_per_token(tokenizer.raw),
            trust_request_chat_template=config.trust_request_chat_template,
        )

    def to_bytes(self) -> bytes:
        files = vars(self.tokenizer)
        values = vars(self) | {"tokenizer": {name: files[name] for name in files if name != "content"}}
        return json.dumps(values).encode() + b"\n" + self.tokenizer.content

    @classmethod
    def from_bytes(cls, content: bytes) -> TokenizerSettings:
        head, _, tokenizer = content.partition(b"\n")
        values = json.loads(head)
        files = TokenizerFiles(content=tokenizer, **values.pop("tokenizer"))
        return cls(tokenizer=files, **values)

    def make_stage(self, parameters: Mapping[str, str]) -> TokenizerStage:
        """`parameters` of config.pbtxt: forwarded_headers is a regular expression, that of tritonserver's
        --http-header-forward-pattern; dialect says whose inputs the model has: "vllm" (default; Triton's vLLM
        backend) or "trtllm"; exclude_input_in_output is what a request gets that does not say."""
        dialect = parameters.get("dialect", "vllm")
        if dialect not in DIALECTS:
            raise InvalidArgument("config.pbtxt: parameters: dialect", describe(dialect), ", ".join(DIALECTS))
        tokenizer = Tokenizer(self.folder, self.tokenizer)
        return TokenizerStage(
            tokenizer,
            self.max_model_len,
            _pattern(parameters.get("forwarded_headers", "")),
            DIALECTS[dialect](self.vocab_size),
            self.vocab_size,
            bytes_per_token=self.bytes_per_token,
            model=self.model,
            excludes_prompt=_flag("exclude_input_in_output", parameters),
            chat=tokenizer.chat_templates(trusts_requests=self.trust_request_chat_template),
        )


def newest_settings(folder: Path) -> Path:
    """model.json of the highest version of a generation model: the one that Triton loads by default."""
    versions = [path for path in folder.glob("*/model.json") if path.parent.name.isdigit()]
    if not versions:
        raise ConfigError(
            folder / "1" / "model.json", "no such file; allowed: a JSON file with engine settings"
        )
    return max(versions, key=lambda path: int(path.parent.name))


def _flag(name: str, parameters: Mapping[str, str]) -> bool:
    value = parameters.get(name, "false")
    flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in flags:
        raise InvalidArgument(f"config.pbtxt: parameters: {name}", describe(value), "true or false")
    return flags[value.lower()]


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text, re.IGNORECASE) if text else None
    except re.error as error:
        given = f"{describe(text)} ({error})"
        raise InvalidArgument(
            "config.pbtxt: parameters: forwarded_headers", given, "a regular expression"
        ) from None


def _model_config(folder: Path) -> Mapping[str, object]:
    try:
        return read_json_object(folder / "config.json")
    except FileNotFoundError:
        raise ModelNotFound(f"{folder / 'config.json'}: no such file; a model folder has one") from None


def _number(model: Mapping[str, object], key: str) -> int | None:
    value = model.get(key)
    return value if isinstance(value, int) else None
