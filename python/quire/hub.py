"""Models of the Hugging Face hub: what is downloaded, and what an incomplete cache lacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.errors import ModelError, ModelNotFound, describe, first_line
from quire.model_folder import CONFIG, INDEX, SINGLE, describe_files, shard_names

# What an engine and a tokenizer read, beside weights.
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
# Folders hold the same weights in other forms (original/, onnx/), but additional_chat_templates/.
_OTHER_FOLDERS = ("[!a]*/*", "a[!d]*/*")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository as the settings name it. `setting`: which one does, for messages. `cache`: where downloads
    are kept; None: in the Hugging Face cache."""

    model: str
    revision: str | None = None
    cache: Path | None = None
    setting: str = "model"

    def __str__(self) -> str:
        at = "" if self.revision is None else f" at revision {describe(self.revision)}"
        return f"{self.setting}: got {describe(self.model)}{at}"

    @property
    def command(self) -> str:
        """What downloads it."""
        revision = "" if self.revision is None else f" --revision {self.revision}"
        cache = "" if self.cache is None else f" --cache-dir {self.cache}"
        return f"`hf download {self.model}{revision}{cache}`"


def hub_folder(source: HubSource, *, download: bool = True, has_weights: bool = True) -> Path:
    """The folder of a repository in the cache, completed first where `download` says so: with the weights
    that are read and no second copy of them. Raises ModelNotFound that says what to do."""
    # Not at the top: importing it costs 0.3 s, and most models are local.
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        weights = (SINGLE,) if has_weights else ()
        folder = _snapshot(source, (*_SMALL_FILES, *weights), download)
        if has_weights and download and not (folder / SINGLE).exists() and (folder / INDEX).exists():
            _snapshot(source, shard_names(folder), download)
    except LocalEntryNotFoundError as error:
        command = source.command
        problem = f"{source}, which is no local folder and not in the Hugging Face cache"
        if not download:
            raise ModelNotFound(
                f"{problem}; allowed: a local folder, or {command} (the first start downloads it, too)"
            ) from error
        raise ModelNotFound(
            f"{problem}, and the hub cannot be reached ({first_line(error)}); allowed: a local folder, or a "
            f"repository downloaded before ({command} where there is a network)"
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFound(f"{source}, which the Hugging Face hub refused: {first_line(error)}") from error
    if source.setting == "model" and (missing := _missing(folder, has_weights)):
        raise ModelNotFound(f"{source}, {_why(source, folder, missing, download)}")
    return folder


def _snapshot(source: HubSource, patterns: Sequence[str], download: bool) -> Path:
    """Downloads what is not there, and goes on where an earlier download ended."""
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            source.model,
            revision=source.revision,
            cache_dir=source.cache,
            allow_patterns=list(patterns),
            ignore_patterns=list(_OTHER_FOLDERS),
            local_files_only=not download,
        )
    )


def _missing(folder: Path, has_weights: bool) -> str | None:
    """The first file that is not there."""
    names = [CONFIG]
    if has_weights and not os.path.lexists(folder / SINGLE):
        try:
            names += shard_names(folder)
        except FileNotFoundError:
            names.append(SINGLE)
        except ModelError:
            return None  # whoever reads the index says what is wrong with it
    return next((name for name in names if not (folder / name).exists()), None)


def _why(source: HubSource, folder: Path, missing: str, download: bool) -> str:
    """Why a file is not in the cache, and the way out."""
    command = source.command
    if not download:
        rest = "the first start downloads the rest, too"
        return f"of which the Hugging Face cache has a part, without {missing}; allowed: {command} ({rest})"
    names = _repository_files(source)
    if names is None:
        return (
            f"of which the Hugging Face cache has a part, without {missing}, and the hub cannot be reached; "
            f"allowed: {command} where there is a network"
        )
    what, allowed = describe_files(names, folder) or (f"no {missing}", "a repository that has it")
    return f"whose repository has {what}; allowed: {allowed}"


def _repository_files(source: HubSource) -> list[str] | None:
    import huggingface_hub

    try:
        return list(huggingface_hub.HfApi().list_repo_files(source.model, revision=source.revision))
    except Exception:  # of whatever library it uses: no network is one answer
        return None
