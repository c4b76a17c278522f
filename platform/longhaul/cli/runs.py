"""`longhaul runs`: which runs there are, how they go, how they compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from longhaul.insight.runs import ComparedRow

app = typer.Typer(help="List, inspect, watch and compare training runs, from their run directories alone.", no_args_is_help=True)

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name below --storage, its folder, or its s3:// URI.", show_default=False)
]
Root = Annotated[
    str, typer.Option("--storage", help="Where the runs are: a folder or s3://bucket/prefix.", envvar="LONGHAUL_STORAGE")
]
_PIPE_WIDTH = 160  # a pipe has no width of its own; rich would take 80 and fold


@app.command("ls")
def list_(storage: Root = "runs") -> None:
    """List the runs below --storage, the newest first.

    `silent` means: calls itself running and has written nothing for two minutes; its processes may be gone.

    Examples:
      longhaul runs ls
      longhaul runs ls --storage s3://bucket/runs
    """
    from longhaul.cli.run_tables import run_table
    from longhaul.insight.runs import list_runs

    rows = list_runs(storage)
    if not rows:
        Console().print(
            f"no runs in {storage}; start one: longhaul train jobs/recipes/classification/digits.yaml", highlight=False
        )
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(run_table(rows, console.width))
    for row in rows:
        if row.problem:
            Console(soft_wrap=True, highlight=False).print(Text(f"{row.name}: {row.problem}", style="dim"))


@app.command()
def show(run: RunName, storage: Root = "runs") -> None:
    """Show one run: progress, newest metrics, results, checkpoints, pictures, what happened, where its time went.

    Examples:
      longhaul runs show digits
      longhaul runs show s3://bucket/runs/digits
    """
    from longhaul.cli.run_tables import ledger_table, run_detail
    from longhaul.insight.goodput import run_account, utilisation
    from longhaul.insight.runs import describe_run, resolve_run

    console, directory = Console(soft_wrap=True, highlight=False), resolve_run(run, storage)
    console.print(run_detail(describe_run(directory)))
    spent = run_account(directory)
    if spent.total_ns:
        console.print(ledger_table(spent, utilisation(directory, spent)))


@app.command(name="incidents")
def incidents_(
    run: RunName,
    number: Annotated[int | None, typer.Argument(metavar="NUMBER", help="Show this one in full.", show_default=False)] = None,
    storage: Root = "runs",
) -> None:
    """List a run's incidents (restarts, lost nodes, hangs) with what each cost, or show one: who failed first, its last words.

    Steps lost: from the step that the incident happened at back to the one that the run went on from. Time lost: from the last
    sign of rank 0 before the incident until that step was reached again or the next incident came, the time that the ledger
    calls hung, startup, waiting or recomputed.

    Examples:
      longhaul runs incidents digits
      longhaul runs incidents digits 3
    """
    from longhaul.cli.run_tables import incident_page, incident_table
    from longhaul.insight.goodput import incident_cost, incident_costs
    from longhaul.insight.runs import resolve_run

    directory = resolve_run(run, storage)
    console = Console(soft_wrap=True, highlight=False)
    if number is not None:
        console.print(incident_page(incident_cost(directory, number)))
    elif costs := incident_costs(directory):
        console.print(incident_table(costs))
        console.print(f"more of one: longhaul runs incidents {directory.uri} {costs[-1].incident.number}")
    else:
        console.print("no incidents")


@app.command()
def pause(run: RunName, storage: Root = "runs") -> None:
    """Ask a run to save and end, to be resumed by name later, with not a step lost.

    Example: longhaul runs pause digits
    """
    _ask(run, storage, "pause")


@app.command()
def cancel(run: RunName, storage: Root = "runs") -> None:
    """Ask a run to end as it stands, without saving; its checkpoints stay.

    Example: longhaul runs cancel digits
    """
    _ask(run, storage, "cancel")


@app.command()
def watch(run: RunName, storage: Root = "runs") -> None:
    """Watch a run until it ends: bars, ETA, loss, learning rate, samples/s and the goal. Ctrl-C ends only the watching.

    Works from any machine that can read the storage. In a pipe or a log it prints a line every 10 seconds. Exits with 1 when
    the run failed.

    Examples:
      longhaul runs watch digits
      longhaul runs watch s3://bucket/runs/digits | tee digits.log
    """
    from longhaul.insight.live import watch as watch_run
    from longhaul.insight.runs import resolve_run

    console = Console(highlight=False)
    directory = resolve_run(run, storage)
    try:
        seen = watch_run(directory, console)
    except KeyboardInterrupt:
        console.print(f"stopped watching; the run goes on. Again: longhaul runs watch {directory.uri}", soft_wrap=True)
        return
    console.print(f"{seen.status}. More: longhaul runs show {directory.uri}", soft_wrap=True)
    if seen.status == "failed":
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two or more runs.", show_default=False)],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw their curves into this PNG.", dir_okay=False)
    ] = None,
    storage: Root = "runs",
) -> None:
    """Compare runs: the recipe fields in which they differ, and what they measured. `*` marks the best value of a line.

    Examples:
      longhaul runs compare digits digits-zero2
      longhaul runs compare digits digits-wide --picture curves.png
    """
    from longhaul.insight.runs import compare_runs, resolve_run

    directories = [resolve_run(run, storage) for run in runs]
    found = compare_runs(directories)
    table = Table("", *found.names, title="comparison", title_justify="left")
    for title, rows in (("recipe", found.recipe), ("progress", found.progress), ("metrics", found.metrics)):
        if rows:
            table.add_row(Text(title, style="bold"), end_section=False)
            for row in rows:
                table.add_row(f"  {row.label}", *_cells(row))
            table.add_section()
    Console(highlight=False).print(table)
    if not found.recipe:
        Console(highlight=False).print("the recipes are the same")
    if picture is not None:
        from longhaul.insight.curves import compare_picture
        from longhaul.storage import Storage

        Storage.open(picture.parent).write_bytes(picture.name, compare_picture(directories))
        Console(soft_wrap=True, highlight=False).print(f"curves: {picture}")


def _cells(row: ComparedRow) -> list[Text]:
    from longhaul.insight.live import number

    texts = [number(value) if isinstance(value, float) else "-" if value is None else str(value) for value in row.values]
    return [Text(f"{text} *", style="bold green") if i in row.best else Text(text) for i, text in enumerate(texts)]


def _ask(name: str, storage: str, kind: Literal["pause", "cancel"]) -> None:
    """Put the request, or refuse where nobody would answer it."""
    from longhaul.errors import UserError
    from longhaul.insight.live import duration_text
    from longhaul.insight.runs import resolve_run, run_row
    from longhaul.resilience.requests import ask

    run = resolve_run(name, storage)
    row, root = run_row(run), run.uri.rpartition("/")[0]
    recipe = "RECIPE" if "://" in run.uri else f"{run.uri}/recipe.yaml"
    resume = f"longhaul train {recipe} --name {run.name} --storage {root}"
    if row.status not in ("running", "silent"):
        fix = f"There is nothing to {kind}" if row.status == "finished" else f"To go on with it: {resume}"
        raise UserError(f"run {run.name}: is not running, it is {row.status}", fix)
    ask(run, kind)
    console = Console(soft_wrap=True, highlight=False)
    what = "saves a checkpoint and ends as `paused`" if kind == "pause" else "ends as `cancelled`, without another checkpoint"
    console.print(Text(f"{run.name}: asked; within seconds, at the end of a step, it {what}"))
    if row.status == "silent":
        quiet = duration_text(row.quiet_s or 0)
        console.print(Text(f"it has been silent for {quiet}: if its processes are gone, nobody will answer", style="yellow"))
    again = "resume it" if kind == "pause" else "go on from its last checkpoint after all"
    console.print(Text(f"see it end: longhaul runs watch {run.uri}\n{again}: {resume}"))
