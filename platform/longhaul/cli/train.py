"""`longhaul train`: run a recipe on the Ray cluster at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from longhaul.cli.recipe import Overrides, RecipePath, RunName
from longhaul.errors import UserError


def train(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    name: RunName = None,
    storage: Annotated[
        str | None, typer.Option(help="Where run directories lie: a folder or s3://bucket/prefix. Default: runs.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest unfinished run of this recipe.")] = False,
    changes: Annotated[
        list[str],
        typer.Option("--change", metavar="FIELD=VALUE", help="Resume with this field of the saved recipe changed; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    address: Annotated[str | None, typer.Option(help="Ray cluster; left out, the one at hand or a local one of its own.")] = None,
) -> None:
    """Train a recipe: on the Ray cluster at hand, or on a local one that is started for it.

    Everything lands in the run directory: recipe, metrics, checkpoints, pictures. The same name again resumes after any crash.

    With --change a run goes on from its newest checkpoint, with the recipe that was saved with it (as --set made it, the first
    time) and these fields changed; the file only says which run --resume means. The run records what changed, and keeps the
    former recipe. A finished run goes on too, if the change makes it longer.

    Examples:
      longhaul train jobs/recipes/classification/digits.yaml
      longhaul train jobs/recipes/classification/digits.yaml --set training.engine=zero2 --name digits-zero2
      longhaul train jobs/recipes/classification/digits.yaml --name digits-zero2        (resumes it)
      longhaul train jobs/recipes/classification/digits.yaml --resume --change training.epochs=220
    """
    from longhaul.cluster.connect import connect, default_storage
    from longhaul.insight.curves import draw_run
    from longhaul.insight.live import following
    from longhaul.recipe import load
    from longhaul.recipe.changes import fields
    from longhaul.recipe.paths import anchored
    from longhaul.resilience.run_directory import RunDirectory, changed_recipe, new_run_name, newest_unfinished

    console = Console()
    loaded = anchored(load(recipe, overrides), Path.cwd())
    root = storage or default_storage()
    chosen = name or (newest_unfinished(root, loaded.name) if resume else None) or new_run_name(loaded.name)
    if changes and name is None and not newest_unfinished(root, loaded.name):
        problem = f"--change: there is no unfinished run of recipe {loaded.name!r} below {root}"
        raise UserError(problem, "Name the run: --name NAME (see `longhaul runs ls`)")
    if changes:
        loaded = changed_recipe(root, chosen, changes, overrides)
    run = RunDirectory.prepare(root, chosen, loaded, fields(changes))
    if run.summary().status == "finished" and run.recipe() == loaded:
        console.print(f"{run.uri} is finished; train a new run with another --name, or look: longhaul runs show {run.uri}")
        return
    console.print(f"run {run.uri}")
    console.print(f"[dim]{connect(address)}[/]")
    from longhaul.training.on_ray.launch import fit

    try:
        with following(run, console):
            summary = fit(loaded, run)
    except KeyboardInterrupt:
        console.print(f"stopped; go on from the newest checkpoint with the same command and --name {run.name}")
        raise typer.Exit(130) from None
    if summary.status != "finished":
        console.print(f"{summary.status} at step {summary.step}; the same command with --name {run.name} goes on from there")
        return
    pictures = draw_run(run)
    best = f"best {summary.goal} {summary.best:.4f} at step {summary.best_step}" if summary.best is not None else ""
    console.print(f"finished {run.uri}: {best}")
    for metric, value in sorted(summary.results.items()):
        console.print(f"  {metric:<16} {value:.4f}")
    for picture in pictures:
        console.print(f"  {picture}")
    console.print(f"next: longhaul runs show {run.uri}   |   longhaul export {run.uri}")
