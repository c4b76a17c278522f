"""`longhaul drill`: see for yourself what a run survives."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from longhaul.cli.recipe import Overrides, RecipePath
from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.drill.verdict import Report


def drill(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    faults: Annotated[int, typer.Option(min=1, help="How many faults.")] = 15,
    seed: Annotated[int, typer.Option(help="Decides which faults strike whom, in what order, at which steps.")] = 1,
    kinds: Annotated[str | None, typer.Option(help="Only these, separated by commas; left out, all.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep logs and runs in this new folder.")] = None,
) -> None:
    """Train a recipe on a cluster that is being broken, and hold the result against an undisturbed run.

    Puts up a real local Ray cluster of several nodes and an S3 server, trains the recipe once in peace, then again while
    workers, nodes and the driver are killed, nodes taken away with and without notice, checkpoints damaged, storage fails,
    samples and gradients are NaN, ranks hang and memory runs out. Then: was everything survived, was every sample seen
    exactly once, are the weights the same? Exits with 1 if not. Takes about half a minute a fault.

    Examples:
      longhaul drill jobs/recipes/classification/digits.yaml --faults 20 --seed 1
      longhaul drill jobs/recipes/classification/digits.yaml --faults 3 --kinds kill-worker,kill-node,kill-driver
    """
    from longhaul.drill.conduct import Drill
    from longhaul.drill.faults import KINDS

    chosen = KINDS if kinds is None else tuple(kind for kind in KINDS if kind in kinds.split(","))
    unknown = set() if kinds is None else set(kinds.split(",")) - set(KINDS)
    if unknown:
        raise UserError(f"--kinds: {', '.join(sorted(unknown))}: no such kind of fault", f"There are {', '.join(KINDS)}")
    console = Console(highlight=False)
    folder = keep or Path(tempfile.mkdtemp(prefix="longhaul-drill-"))
    if keep is not None:
        if keep.exists():
            raise UserError(f"--keep {keep}: is there already", "Give a folder that is not there yet")
        keep.mkdir(parents=True)
    try:
        held = Drill(recipe, faults, seed, folder.resolve(), console.print, overrides, chosen).hold()
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    _print(console, held)
    if keep is not None:
        console.print(f"report: {folder / 'report.json'}")
    if not held.passed:
        raise typer.Exit(1)


def _print(console: Console, held: Report) -> None:
    table = Table(title=f"drill, seed {held.seed}")
    for column in ("fault", "at step", "survived", "steps lost", "s lost"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for outcome in held.outcomes:
        survived = "[green]yes[/]" if outcome.survived else "[red]NO[/]"
        lost = f"{outcome.seconds_lost:.1f}"
        table.add_row(outcome.kind, str(outcome.step), survived, str(outcome.steps_lost), lost)
    console.print(table)
    for outcome in held.outcomes:
        if not outcome.survived:
            console.print(f"[red]{outcome.kind}[/]: {outcome.why}", markup=True)
    console.print(f"samples: {held.stream or 'every position of the order exactly once'}")
    until = held.equal_steps[-1] if held.equal_steps else 0
    console.print(f"weights: {len(held.equal_steps)} checkpoints bitwise those of the undisturbed run, up to step {until}; "
                  f"{len(held.unequal_steps)} that should be are not")  # fmt: skip
    console.print(f"{held.metric}: {held.disturbed:.4f}, undisturbed {held.straight:.4f} (noise ±{held.noise:.4f})")
    console.print(f"goodput {held.goodput:.1%} of {held.wall_s:.0f} s; the ledger misses the wall by {held.ledger_error_ns} ns")
    console.print("[green]passed[/]" if held.passed else "[red]not passed[/]")
