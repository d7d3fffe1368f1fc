"""The repository that a command serves: a given one, the default, or one made for a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from quire.cli.common import default_repository, packaged_repository
from quire.config import EngineConfig
from quire.errors import InvalidArgument
from quire.model_path import is_hub_id
from quire.triton.model_copy import copy_for_model, parse_settings
from quire.triton.run_folder import RunFolder

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Instead of a repository: a folder, a GGUF file, an embedded model or a Hugging Face id, served "
        "by the packaged repository."
    ),
]


@contextmanager
def chosen_repository(
    repository: Path | None, model: str | None, name: str | None = None, settings: Sequence[str] = ()
) -> Iterator[Path]:
    """The repository to serve; a temporary one where a model is given."""
    if model is None:
        for flag, is_given in (("--name", name is not None), ("--set", bool(settings))):
            if is_given:
                raise InvalidArgument(flag, "it without --model", "with --model, which makes the repository")
        yield repository or default_repository()
        return
    if repository is not None:
        raise InvalidArgument("--model, --model-repository", "both", "one of them")
    folder = RunFolder()
    try:
        target = folder.path / "model_repository"
        copy_for_model(packaged_repository(), target, model, name, parse_settings(settings))
        if is_hub_id(model):
            # Downloads here: with progress bars, and before the time for a start counts.
            config = EngineConfig.from_file(target / "generation" / "1" / "model.json")
            config.tokenizer_folder(config.model_folder())
        yield target
    finally:
        folder.remove()
