"""Checks a model.json as the engine does at start, up to the first byte of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quire.config import EngineConfig
from quire.errors import ModelNotFound, QuireError
from quire.model_path import is_hub_id
from quire.triton.problem import Problem

if TYPE_CHECKING:
    from quire.runner.plan import MemoryClaim


def check_settings(path: Path, claims: dict[str, MemoryClaim] | None = None) -> Iterator[Problem]:
    """A model.json, the model that it names, that model's files, and whether it fits on this machine. Adds to
    `claims` what memory its engine will take, under the names of model and version."""
    try:
        config = EngineConfig.from_file(path)
        folder = config.model_folder(download=False)
        tokenizer = config.tokenizer_folder(folder, download=False)
    except ModelNotFound as error:
        name = config.tokenizer if str(error).startswith("tokenizer: ") else config.model
        is_download = is_hub_id(name or config.model) and (name or config.model) in str(error)
        yield Problem(file=path, message=str(error), is_note=is_download)
        return
    except QuireError as error:
        yield _problem(path, str(error))
        return
    # Not at the top: importing torch takes a second, and settings that are wrong need none of it.
    try:
        from quire.engine.build import check
        from quire.runner.threads import SHARED_CORES
    except ImportError as error:
        yield Problem(file=path, message=f"its engine cannot be imported: {error}")
        return

    def add(claim: MemoryClaim) -> None:
        if claims is not None:
            claims["/".join(path.parts[-3:-1])] = claim

    for message, is_warning in check(config, SHARED_CORES, folder, tokenizer, add):
        yield _problem(path, message, is_note=is_warning)


def check_claims(claims: Mapping[str, MemoryClaim]) -> Iterator[str]:
    """What is wrong where each of several engines fits, but not all of them together."""
    for device in sorted({claim.device for claim in claims.values()}):
        shared = {name: claim for name, claim in claims.items() if claim.device == device}
        total = sum(claim.num_bytes for claim in shared.values())
        limit = min(claim.limit for claim in shared.values())
        if len(shared) > 1 and total > limit:
            settings = ", ".join(dict.fromkeys(claim.setting for claim in shared.values()))
            given = ", ".join(f"{claim.value} ({name})" for name, claim in shared.items())
            yield (
                f"{settings}: got {given}, which is {total / limit:.2f} of the memory of {device}; allowed: "
                f"at most 1 together ({limit >> 20} MiB)"
            )


def _problem(path: Path, message: str, *, is_note: bool = False) -> Problem:
    """Under the file that the message begins with, else under the settings."""
    file, separator, rest = message.partition(": ")
    if separator and file.startswith("/"):
        return Problem(file=Path(file), message=rest, is_note=is_note)
    return Problem(file=path, message=message, is_note=is_note)
