"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from harness import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Evaluate multimodal retrieval models: exact protocols, cached embeddings, leaderboards.",
)
list_app = typer.Typer(
    no_args_is_help=True, help="What is installed: models, tasks, suites, recipes, plugins."
)
data_app = typer.Typer(no_args_is_help=True, help="The data sets below the data root.")
cache_app = typer.Typer(no_args_is_help=True, help="The cache: what lies in it, is it sound, what can go.")
bench_app = typer.Typer(no_args_is_help=True, help="Speed on this machine, beside what people use instead.")
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
app.add_typer(bench_app, name="bench")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"umr-harness {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass
