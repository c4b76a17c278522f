"""`longhaul`: the verbs, and how errors are shown."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from longhaul import __version__
from longhaul.cli import cluster, export, models, recipe, runs, serve, submit, train
from longhaul.errors import LonghaulError

app = typer.Typer(
    name="longhaul",
    help="Train, sweep, explain, export and serve vision and radio models on Ray, on a laptop or a GPU cluster.",
    epilog="Start with: longhaul train jobs/recipes/classification/digits.yaml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(name="train")(train.train)
app.command(name="submit")(submit.submit)
app.add_typer(runs.app, name="runs")
app.command(name="export")(export.export)
app.add_typer(models.app, name="models")
app.command(name="serve")(serve.serve)
app.add_typer(recipe.app, name="recipe")
app.add_typer(cluster.app, name="cluster")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        Console().print(f"longhaul {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `longhaul` command: purposeful errors are one line on stderr, with their exit code."""
    # Ray 2.60 turns token authentication on or off by whether a file exists; unset, the same command behaves differently
    # on two machines (docs: RAY_AUTH_MODE). The token is made on first use and stays in ~/.ray/auth_token.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        app()
    except LonghaulError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {_escape(str(error))}")
        sys.exit(error.exit_code)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
