"""What a model folder holds when it is loaded, so that a later reader can tell whether it holds the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from quire.errors import ModelError, ModelNotFound
from quire.model_folder import CONFIG, HF_QUANT_CONFIG, QUANT_CONFIG, QUANTIZE_CONFIG
from quire.tokenizer_files import TOKENIZER_FILES

_SMALL_FILES = (CONFIG, "generation_config.json", HF_QUANT_CONFIG, QUANTIZE_CONFIG, QUANT_CONFIG)
_WEIGHTS = (".safetensors", ".gguf")
_NUM_SAMPLES = 64
_SAMPLE_SIZE = 4096


def fingerprint(content: bytes) -> str:
    """128 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class LoadedFolder:
    """The folders of model and tokenizer that a load found, mostly one, and the fingerprints of their files.
    It goes through the server as text, so that an engine that takes the place of a dead one serves the same
    model or says why it cannot."""

    folder: Path
    tokenizer: Path
    files: dict[str, str]  # fingerprints; "": there is no such file

    @classmethod
    def of(cls, folder: Path, tokenizer: Path | None = None) -> LoadedFolder:
        tokenizer = tokenizer or folder
        return cls(folder=folder, tokenizer=tokenizer, files=_fingerprints(folder, tokenizer))

    @classmethod
    def from_text(cls, text: str) -> LoadedFolder:
        values = json.loads(text)
        return cls(folder=Path(values["folder"]), tokenizer=Path(values["tokenizer"]), files=values["files"])

    def to_text(self) -> str:
        folders = {"folder": str(self.folder), "tokenizer": str(self.tokenizer)}
        return json.dumps(folders | {"files": self.files})

    def check(self) -> None:
        """Raises ModelError that names the files which are not those of the load."""
        for setting, folder in (("model", self.folder), ("tokenizer", self.tokenizer)):
            if not folder.is_dir():
                raise ModelNotFound(
                    f"{setting}: got no folder {folder}, which was there when the model was loaded; allowed: "
                    "the folder of the load, or load the models that use it again"
                )
        now = _fingerprints(self.folder, self.tokenizer)
        changed = [name for name in now if now[name] != self.files.get(name)]
        if changed:
            folders = " and ".join(dict.fromkeys(map(str, (self.folder, self.tokenizer))))
            raise ModelError(
                f"model: got other files in {folders} than when it was loaded ({', '.join(changed)}); "
                "allowed: those of the load: put them back, or load the models that use them (generation, "
                "tokenizer) again"
            )


def _fingerprints(folder: Path, tokenizer: Path) -> dict[str, str]:
    paths = [folder / name for name in _SMALL_FILES] + [tokenizer / name for name in TOKENIZER_FILES]
    found = {path.name: fingerprint(path.read_bytes()) if path.is_file() else "" for path in paths}
    return found | {"*.safetensors": _weights_fingerprint(folder)}


def _weights_fingerprint(folder: Path) -> str:
    """One for all weights: names, sizes and samples. Reading all of them would double the time of a load."""
    samples = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file()):
        size = path.stat().st_size
        samples.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for offset in range(0, size, max(_SAMPLE_SIZE, size // _NUM_SAMPLES)):
                file.seek(offset)
                samples.update(file.read(_SAMPLE_SIZE))
    return samples.hexdigest()[:32]
