"""The command line: `quire serve | generate | check | check-stream | demo | bench`."""

from __future__ import annotations

import typer

from quire.cli import bench, check, check_stream, demo, generate, serve

app = typer.Typer(
    name="quire",
    help="LLM serving on NVIDIA Triton with its own paged-attention engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)
app.command("check")(check.check)
app.command("check-stream")(check_stream.check_stream)
app.command("demo")(demo.demo)
# What follows the benchmark's name is its own.
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.bench)

__all__ = ["app"]
