"""`longhaul cluster`: look after clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(help="Check the description of an AWS cluster before it costs anything.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass  # keeps `validate` a verb of its own while it is the only one


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="A cluster file for `ray up`.", show_default=True)] = Path("cluster.yaml"),
) -> None:
    """Check a cluster file without AWS: Ray's schema, EC2's parameters, and what is known to end badly.

    Exits with 2 if anything is wrong; warnings and placeholders alone do not count.

    Examples:
      longhaul cluster validate
      longhaul cluster validate staging.yaml
    """
    from longhaul.cluster.validate import validate_file
    from longhaul.errors import UserError

    problems = validate_file(path)
    console = Console(highlight=False, soft_wrap=True)
    errors = [problem for problem in problems if problem.severity == "error"]
    for problem in problems:
        colour = "bold red" if problem.severity == "error" else "yellow"
        console.print(f"[{colour}]{problem.severity}[/] {escape(str(problem))}")
    if errors:
        raise UserError(f"{path}: {len(errors)} problem{'s' * (len(errors) != 1)}", "Correct the lines above")
    console.print(f"{escape(str(path))}: valid for Ray and EC2" + (f", {len(problems)} to look at" if problems else ""))
