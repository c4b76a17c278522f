"""`longhaul`: the verbs, and how errors are shown."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from longhaul import __version__
from longhaul.cli import (
    autotune,
    cluster,
    crossval,
    detect,
    drill,
    explain,
    export,
    models,
    plan,
    profile,
    recipe,
    report,
    runs,
    serve,
    signals,
    submit,
    sweep,
    tokens,
    train,
)
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
app.command(name="crossval")(crossval.crossval)
app.add_typer(sweep.app, name="sweep")
app.command(name="report")(report.report)
app.command(name="profile")(profile.profile)
app.command(name="explain")(explain.explain)
app.command(name="autotune")(autotune.autotune)
app.command(name="submit")(submit.submit)
app.command(name="drill")(drill.drill)
app.add_typer(runs.app, name="runs")
app.command(name="plan")(plan.plan)
app.command(name="export")(export.export)
app.add_typer(models.app, name="models")
app.command(name="serve")(serve.serve)
app.command(name="detect")(detect.detect)
app.add_typer(tokens.app, name="token")
app.add_typer(signals.app, name="signals")
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
        _fail(str(error), error.exit_code)
    except OSError as error:
        if "AWS Error" not in str(error):
            raise
        # pyarrow's words for all that S3 answers or does not answer; the user's to put right, and no place for a traceback
        reason = " ".join(str(error).split())
        _fail(f"S3: {reason}. Check the bucket's name, AWS_REGION, AWS_ENDPOINT_URL and the credentials", 2)


def _fail(message: str, code: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {_escape(message)}")
    sys.exit(code)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
