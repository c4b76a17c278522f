"""`longhaul drill`: disturb a run on purpose, and see whether it comes to the same end."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from longhaul.cli.recipe import Overrides, RecipePath


def drill(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    faults: Annotated[int, typer.Option(min=1, max=200, help="How many faults strike.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Decides which fault strikes when; the same seed, the same schedule.")] = 1,
    kinds: Annotated[str, typer.Option(help="Only these kinds of faults, separated by commas.")] = "",
    report: Annotated[str | None, typer.Option(help="Where to write the report. Default: drills/ where runs lie.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the drill's folder, with the logs of drivers and cluster.")] = False,
) -> None:
    """Train a recipe twice on a local cluster of several nodes: in peace, and struck by faults. Compare what comes out.

    Workers, nodes and drivers are killed, nodes are taken away with and without notice, checkpoints are damaged, S3 fails, a
    disk is full, a gradient is NaN, a sample is poisoned, a rank hangs, memory runs out. Exits with 1 if the run did not survive
    one of them by itself, or if the samples it saw or its final weights are not those of the undisturbed run. Most faults cost a
    restart, which is half a minute.

    Examples:
      longhaul drill jobs/recipes/classification/digits.yaml
      longhaul drill jobs/recipes/classification/digits.yaml --faults 3 --seed 4 --kinds kill-node,flipped-bit,hung-rank
    """
    import time

    from longhaul.drill.object_store import check_installed

    check_installed()
    from longhaul.cluster.connect import default_storage
    from longhaul.drill.preparation import own_overrides, prepare
    from longhaul.drill.stage import perform
    from longhaul.drill.view import LiveView, report_table, schedule_table
    from longhaul.storage import Storage

    console = Console(highlight=False)
    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    prepared = prepare(recipe, overrides, faults, seed, chosen)
    console.print("The drill's own changes to the recipe, before yours: " + ", ".join(own_overrides(faults)), markup=False)
    console.print(schedule_table(prepared.faults))
    try:
        with LiveView(console) as view:
            found = perform(prepared, seed, view.show, keep=keep)
    except KeyboardInterrupt:
        console.print("stopped; nothing of the drill is left")
        raise typer.Exit(130) from None
    console.print(report_table(found))
    where = report or f"{default_storage()}/drills/{prepared.recipe.name}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    folder, _, name = where.rpartition("/")
    Storage.open(folder or ".").write_bytes(name, (found.model_dump_json(indent=1) + "\n").encode())
    console.print(f"report {where}")
    if found.folder is not None:
        console.print(f"kept {found.folder}")
    survived = sum(outcome.state == "survived" for outcome in found.outcomes)
    verdict = "[green]passed[/]" if found.passed else "[bold red]FAILED[/]"
    console.print(f"{verdict}: {survived} of {len(prepared.faults)} faults survived, in {found.wall_s / 60:.1f} minutes")
    if not found.passed:
        raise typer.Exit(1)
