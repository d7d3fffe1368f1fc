"""`quire generate`: one prompt, in this process, without Triton."""

from __future__ import annotations

from typing import Annotated

import typer

from quire.cli.common import console, errors_as_text
from quire.errors import EngineError, InvalidArgument
from quire.sampling_params import SamplingParams


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[str, typer.Option(help="Folder, embedded model, or Hugging Face id.")] = "quire-8m",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option()] = 0,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
) -> None:
    """Continue PROMPT and print prompt and answer."""
    with errors_as_text():
        for name, text in (("PROMPT", prompt), *(("--stop", text) for text in stop or ())):
            _require_utf8(name, text)
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or (),
        )
        with console.status(f"loading {model}"):
            # Not at the top: it imports torch.
            from quire.llm import LLM

            llm = LLM(model)
        with console.status("generating"):
            [output] = llm.generate(prompt, params)
        [completion] = output.outputs
        console.print(prompt, style="dim", end="", markup=False)
        console.print(completion.text, markup=False)
        if completion.finish_reason == "error":
            raise EngineError(completion.error)


def _require_utf8(name: str, text: str) -> None:
    """An argument of other bytes comes with lone surrogates in their places."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        position = len(text[: error.start].encode())
        raise InvalidArgument(name, f"invalid UTF-8 at byte {position}", "UTF-8 text") from None
