"""The command line: `quire serve`, `add-model`, `check` and so on."""

from __future__ import annotations

import typer

from quire.cli import bench, check, check_stream, demo, generate, migrate, models, serve

app = typer.Typer(
    name="quire",
    help="LLM serving on NVIDIA Triton with its own paged-attention engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)
app.command("add-model")(models.add)
app.command("remove-model")(models.remove)
app.command("list")(models.show_all)
app.command("migrate")(migrate.migrate)
app.command("check")(check.check)
app.command("check-stream")(check_stream.check_stream)
app.command("demo")(demo.demo)
# What follows the benchmark's name is its own.
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.bench)

__all__ = ["app"]
