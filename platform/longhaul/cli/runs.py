"""`longhaul runs`: which runs there are, how they go, how they compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from longhaul.insight.runs import ComparedRow, RunDetail, RunRow

app = typer.Typer(help="List, inspect, watch and compare training runs, from their run directories alone.", no_args_is_help=True)

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name below --storage, its folder, or its s3:// URI.", show_default=False)
]
Root = Annotated[
    str, typer.Option("--storage", help="Where the runs are: a folder or s3://bucket/prefix.", envvar="LONGHAUL_STORAGE")
]
_EVENTS = 12
_WIDE = 110  # columns of a terminal that has room for every column of the list
_PIPE_WIDTH = 160  # a pipe has no width of its own; rich would take 80 and fold


@app.command("ls")
def list_(storage: Root = "runs") -> None:
    """List the runs below --storage, the newest first.

    `silent` means: calls itself running and has written nothing for two minutes; its processes may be gone.

    Examples:
      longhaul runs ls
      longhaul runs ls --storage s3://bucket/runs
    """
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
    console.print(_run_table(rows, console.width))
    for row in rows:
        if row.problem:
            Console(soft_wrap=True, highlight=False).print(Text(f"{row.name}: {row.problem}", style="dim"))


@app.command()
def show(run: RunName, storage: Root = "runs") -> None:
    """Show one run: progress, newest metrics, results, checkpoints, pictures, what happened.

    Examples:
      longhaul runs show digits
      longhaul runs show s3://bucket/runs/digits
    """
    from longhaul.insight.runs import describe_run, resolve_run

    Console(soft_wrap=True, highlight=False).print(_detail(describe_run(resolve_run(run, storage))))


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


def _run_table(rows: list[RunRow], width: int) -> Table:
    from longhaul.insight.live import STYLES, duration_text, number

    left = {"run", "status", "best", "workload"}
    names = ["run", "status", "step", "epoch", "best", "loss", "samples/s", "age", "workload"]
    if width < _WIDE:
        names = [name for name in names if name not in ("epoch", "samples/s", "workload")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold", no_wrap=name != "run")
    for row in rows:
        silent = f"silent {duration_text(row.quiet_s)}" if row.status == "silent" and row.quiet_s else row.status
        cells: dict[str, str | Text] = {
            "run": Text(row.name),
            "status": Text(silent, style=STYLES[row.status]),
            "step": f"{row.step:,}/{row.total_steps:,}" if row.total_steps else "-",
            "epoch": f"{row.epoch:.1f}" if row.step else "-",
            "best": f"{row.goal.removeprefix('val/')} {number(row.best)}" if row.best is not None else "-",
            "loss": number(row.loss),
            "samples/s": number(row.samples_per_s, 3),
            "age": duration_text(row.age_s) if row.age_s is not None else "-",
            "workload": row.workload or "-",
        }
        table.add_row(*(cells[name] for name in names))
    return table


def _detail(seen: RunDetail) -> Group:
    from longhaul.insight.live import STYLES, duration_text, number

    row, summary = seen.row, seen.summary
    facts = Table.grid(padding=(0, 2))
    quiet = f" for {duration_text(row.quiet_s)}: its processes may be gone" if row.status == "silent" and row.quiet_s else ""
    facts.add_row("status", Text(row.status + quiet, style=STYLES[row.status]))
    if summary.error:
        facts.add_row("error", Text(summary.error, style="red"))
    facts.add_row("folder", Text(row.uri))
    facts.add_row("recipe", f"{seen.recipe_sha256[:12]}  ({row.workload or 'not started'})")
    facts.add_row("progress", f"step {row.step:,}/{row.total_steps:,}, epoch {row.epoch:.2f}, segment {summary.segment}")
    if row.age_s is not None:
        facts.add_row("started", f"{duration_text(row.age_s)} ago")
    if row.best is not None:
        facts.add_row("best", Text(f"{row.goal} {number(row.best)} at step {summary.best_step}, {summary.best_checkpoint}"))
    facts.add_row("checkpoints", Text(", ".join(seen.checkpoints) or "none"))
    for number_, picture in enumerate(seen.pictures):
        facts.add_row("" if number_ else "pictures", Text(picture))
    parts: list[Any] = [Text(row.name, style="bold"), facts]
    if seen.latest or summary.results:
        metrics = Table("metric", "value", "step", title="newest metrics", title_justify="left")
        for name, value in sorted(summary.results.items()):
            metrics.add_row(Text(name, style="bold"), number(value), "result")
        for name, latest in sorted(seen.latest.items()):
            if name not in summary.results:
                metrics.add_row(name, number(latest["value"]), f"{latest['step']:,}")
        parts.append(metrics)
    if seen.events:
        events = Table("step", "event", "what", title="last events", title_justify="left")
        for event in seen.events[-_EVENTS:]:
            events.add_row(f"{event['step']:,}", event["kind"], Text(event["message"]))
        parts.append(events)
    return Group(*parts)


def _cells(row: ComparedRow) -> list[Text]:
    from longhaul.insight.live import number

    texts = [number(value) if isinstance(value, float) else "-" if value is None else str(value) for value in row.values]
    return [Text(f"{text} *", style="bold green") if i in row.best else Text(text) for i, text in enumerate(texts)]
