"""`longhaul crossval`: a run for each fold of the data, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from longhaul.cli.recipe import Overrides, RecipePath

if TYPE_CHECKING:
    from longhaul.resilience.fold_report import FoldReport
    from longhaul.resilience.run_directory import Summary
    from longhaul.tuning.crossval import FoldRun


def crossval(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    auto_tune: Annotated[
        bool,
        typer.Option("--auto-tune/--as-written", help="Take epochs, folds, batch, rate and patience from the number of samples."),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the whole; folds are NAME_fold1, NAME_fold2 ... Default: the recipe's name.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Where run directories lie: a folder or s3://bucket/prefix. Default: runs.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster; left out, the one at hand or a local one of its own.")] = None,
) -> None:
    """Cross-validate: deal the recordings, or the images, into folds, train one run a fold on Ray, compare them.

    Chunks of one recording are never on both sides of a split. Folds train side by side where the cluster has room. On Ctrl-C
    they save and end; after that, as after a crash, the same command goes on. `longhaul export NAME` exports the best fold.

    Example: longhaul crossval jobs/recipes/detection/wifi_bluetooth_small.yaml --auto-tune

    Example: longhaul crossval jobs/recipes/detection/lte_uplink.yaml --set data.folds=5 --storage s3://bucket/runs
    """
    import ray

    from longhaul.cli.autotune import estimate, table, tune
    from longhaul.cluster.connect import connect, default_storage
    from longhaul.insight.folds import draw_folds
    from longhaul.recipe import load
    from longhaul.recipe.paths import anchored
    from longhaul.tuning.crossval import crossvalidate, parallel_folds, prepare

    console = Console(highlight=False, soft_wrap=True)
    if auto_tune:
        tuned, loaded = tune(recipe, overrides)
        console.print(table(tuned, loaded))
    else:
        loaded = anchored(load(recipe, overrides), Path.cwd())
    root, chosen = storage or default_storage(), name or loaded.name
    folds = prepare(loaded, root, chosen)
    console.print(f"[dim]{connect(address)}[/]")
    console.print(estimate(loaded, parallel_folds(loaded, ray.cluster_resources())))
    try:
        with _Bars(console) as bars:
            report = crossvalidate(folds, root, chosen, bars.show)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    console.print(summary_table(report))
    for picture in draw_folds(root, report):
        console.print(f"  {picture}")
    failed = [fold for fold in report.folds if fold.status != "finished"]
    for fold in failed:
        console.print(f"[red]fold {fold.number} {fold.status}[/]: {escape(fold.error or 'it was stopped')}")
    if report.best is not None and not failed:
        console.print(f"next: longhaul export {chosen}   (fold {report.best.number}, the best by {report.goal})")
    if failed:
        console.print("the same command tries these folds again")
        raise typer.Exit(1)


def summary_table(report: FoldReport) -> Table:
    """A row a fold, its best validation and its results on the test samples; below, their mean and standard deviation."""
    metrics = sorted({metric for fold in report.folds for metric in fold.results})
    best = report.best
    title = f"cross-validation {report.name}: {report.goal} on each fold's own samples, the rest on the test split"
    shown = Table("fold", report.goal, "step", *(metric.removeprefix("test/") for metric in metrics), title=title)
    for fold in report.folds:
        mark = " *" if best is not None and fold.number == best.number else ""
        values = [f"{fold.results[metric]:.3f}" if metric in fold.results else "" for metric in metrics]
        goal = "" if fold.best is None else f"{fold.best:.3f}{mark}"
        shown.add_row(str(fold.number), goal, str(fold.best_step or ""), *values)
    if metrics:
        spread = [report.spread(metric) for metric in metrics]
        shown.add_section()
        mean_goal, goal_deviation = report.goal_spread()
        shown.add_row("mean", f"{mean_goal:.3f}", "", *(f"{mean:.3f}" for mean, _ in spread))
        shown.add_row("±", f"{goal_deviation:.3f}", "", *(f"{deviation:.3f}" for _, deviation in spread))
    return shown


class _Bars:
    """A bar for each fold, with its last best goal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps  {task.fields[note]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._tasks: dict[int, TaskID] = {}

    def show(self, standing: Sequence[tuple[FoldRun, Summary]]) -> None:
        """Bring the bars up to date."""
        for fold, summary in standing:
            if fold.number not in self._tasks:
                self._tasks[fold.number] = self._progress.add_task(fold.run.name, total=None, start=False, note="waits")
            task = self._tasks[fold.number]
            if summary.step and not self._progress.tasks[task].started:
                self._progress.start_task(task)
            begun = summary.total_steps > 0
            best = f"best {summary.goal} {summary.best:.4f}" if summary.best is not None else ""
            note = f"{best}{'' if summary.status == 'running' else ' ' + summary.status}" if begun else "waits"
            over = summary.status == "finished"  # perhaps early
            total = summary.step if over else summary.total_steps if begun else None
            self._progress.update(task, completed=summary.step, total=total, note=note)
            if over:
                self._progress.stop_task(task)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
