"""`longhaul submit`: train a recipe as a job on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from longhaul.cli.recipe import Overrides, RecipePath, RunName

if TYPE_CHECKING:
    from longhaul.cluster import jobs

_INTERRUPTED = 130  # what shells report for Ctrl-C


def submit(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    name: RunName = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where run directories lie: s3://bucket/prefix, or a folder on the cluster. Default: as the cluster is set up."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Dashboard of the cluster. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, then http://127.0.0.1:8265."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once the job is accepted, without following its log.")
    ] = False,
) -> None:
    """Train a recipe as a job on a Ray cluster, and follow its log; ends with the job's exit code.

    The job goes on when this command is interrupted. It gets a copy of this clone, so local changes count.

    Examples:
      longhaul submit jobs/recipes/classification/digits.yaml
      longhaul submit jobs/recipes/classification/digits.yaml --storage s3://bucket/runs --name digits-1 --no-wait
    """
    from longhaul.cluster import jobs

    console = Console(highlight=False, soft_wrap=True)
    job = jobs.submit(recipe, overrides, name=name, storage=storage, address=address)
    console.print(f"submitted [bold]{job.submission_id}[/] to {job.dashboard}")
    where = escape(job.storage) if job.storage else "LONGHAUL_STORAGE of the cluster, or ~/longhaul/runs on its head"
    console.print(f"[dim]runs in {where}[/]")
    if no_wait:
        _show_commands(console, job)
        return
    try:
        code = jobs.follow(job, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        console.print(f"\nno longer following; {job.submission_id} goes on")
        _show_commands(console, job)
        raise typer.Exit(_INTERRUPTED) from None
    if code:
        raise typer.Exit(code)


def _show_commands(console: Console, job: jobs.Submission) -> None:
    console.print(f"  follow: {job.command('logs', '--follow')}", markup=False)
    console.print(f"  status: {job.command('status')}", markup=False)
    console.print(f"  stop:   {job.command('stop')}", markup=False)
