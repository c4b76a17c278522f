"""`longhaul sweep`: train a grid or a search, look at it, extend it, compare two."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.recipe.sweep import SweepRecipe
    from longhaul.resilience.sweep_directory import SweepState
    from longhaul.tuning.sweep_plan import SweepPlan

SweepPath = Annotated[Path, typer.Argument(help="A sweep's file, such as jobs/recipes/resomap/small.yaml.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", "-s", metavar="FIELD=VALUE",
        help="Override a field, e.g. --set recipe.training.epochs=3 or --set grid.data.resolution=[32,64]; repeatable.",
    ),
]  # fmt: skip
Name = Annotated[str | None, typer.Option(help="The sweep's; default: the recipe's name.")]
StorageRoot = Annotated[
    str | None, typer.Option("--storage", help="Where sweeps and their cells lie: a folder or s3://bucket/prefix. Default: runs.")
]
Force = Annotated[
    list[str],
    typer.Option(
        "--force", help="Train this cell to its end whatever stopping and pruning say: its label or key, with * for any."
    ),
]
AnyCode = Annotated[
    bool,
    typer.Option("--any-code", help="Take finished cells of other code for what they are, until the code changes again."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster; left out, the one at hand or a local one of its own.")]


class RunsByDefault(TyperGroup):
    """`longhaul sweep FILE` is `longhaul sweep run FILE`."""

    default = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's hook: put `run` in front of what is no verb."""
        if args and args[0] not in self.commands and args[0] != "--help":
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            if near and not Path(args[0]).exists() and not ctx.resilient_parsing:
                raise UserError(f"sweep {args[0]}: neither a verb nor a file", f"Did you mean `longhaul sweep {near[0]}`?")
            args = [self.default, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunsByDefault,
    no_args_is_help=True,
    help="Train every cell of a grid, or a search over hyperparameters, on Ray Tune; none of them twice.\n\n"
    "`longhaul sweep FILE` runs one. After Ctrl-C, a crash or an edit of the file the same command goes on: what is finished "
    "is never trained again.\n\nExample: longhaul sweep jobs/recipes/resomap/small.yaml",
)


@app.command(name="run")
def run_sweep(
    recipe: SweepPath,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    name: Name = None,
    storage: StorageRoot = None,
    force: Force = [],  # noqa: B006 - typer copies it
    any_code: AnyCode = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show the cells and what they cost; train nothing.")] = False,
    address: Address = None,
) -> None:
    """Train a sweep's cells, cheapest first, several at a time where the cluster has room.

    Example: longhaul sweep run jobs/recipes/resomap/small.yaml   (`run` may be left out)

    Example: longhaul sweep jobs/recipes/resomap/standard.yaml --set grid.data.resolution=[224,256] --plan
    """
    from longhaul.recipe.load import load_sweep

    sweep = load_sweep(recipe, overrides)
    _go(sweep, name or sweep.name, storage, force=force, any_code=any_code, plan_only=plan_only, address=address)


@app.command(name="extend")
def extend(
    name: Annotated[str, typer.Argument(help="The sweep's name.")],
    add: Annotated[
        list[str], typer.Option("--add", help="A value more of a field of the grid, such as data.resolution=128; repeat it.")
    ] = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    storage: StorageRoot = None,
    force: Force = [],  # noqa: B006 - typer copies it
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what would be trained; train nothing.")] = False,
    address: Address = None,
) -> None:
    """Add models, resolutions or trials to a sweep, and train the new cells alone.

    Example: longhaul sweep extend resomap_small --add data.resolution=128 --add model.name=resnet18

    Example: longhaul sweep extend resomap_small --force 'resnet10t 96'
    """
    from longhaul.cluster.connect import default_storage
    from longhaul.recipe.load import added, dump_sweep, parse_sweep
    from longhaul.resilience.sweep_directory import SweepDirectory

    root = storage or default_storage()
    before = SweepDirectory.open(root, name).recipe()
    sweep = parse_sweep(dump_sweep(added(before, add)), source=f"sweep {name}", overrides=overrides)
    _go(sweep, name, root, force=force, any_code=True, plan_only=plan_only, address=address)


@app.command(name="status")
def status(
    name: Annotated[str | None, typer.Argument(help="The sweep's name; left out, all of them.")] = None,
    storage: StorageRoot = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Show the name of each cell's run, for longhaul runs and longhaul export.")
    ] = False,
) -> None:
    """How a sweep stands, cell by cell; without a name, all sweeps.

    Example: longhaul sweep status resomap_small

    Example: longhaul sweep status resomap_small --runs
    """
    from longhaul.cli.sweep_tables import best_lines, cells_table, is_driven, run_lines, sweeps_table
    from longhaul.cluster.connect import default_storage
    from longhaul.resilience.sweep_directory import SweepDirectory

    console = Console(highlight=False)
    root = storage or default_storage()
    if name is None:
        sweeps = SweepDirectory.all(root)
        none = f"no sweeps in {escape(root)}; start one: longhaul sweep jobs/recipes/resomap/small.yaml"
        console.print(sweeps_table(sweeps) if sweeps else none, soft_wrap=not sweeps)
        return
    sweep = SweepDirectory.open(root, name)
    state = sweep.state()
    console.print(cells_table(state, driven=is_driven(sweep)))
    for line in run_lines(sweep, state) if runs else ():
        console.print(line, soft_wrap=True)
    for note in state.notes:
        console.print(f"[dim]{escape(note)}[/]")
    for line in best_lines(sweep, state):
        console.print(line, soft_wrap=True)


@app.command(name="diff")
def diff(
    first: Annotated[str, typer.Argument(help="A sweep's name.")],
    second: Annotated[str, typer.Argument(help="Another one's, or a recipe file: what it would change.")],
    storage: StorageRoot = None,
) -> None:
    """Compare two sweeps: which cells both have, which only one, and what they came to.

    Example: longhaul sweep diff resomap_small jobs/recipes/resomap/standard.yaml
    """
    from longhaul.cli.sweep_tables import difference_table
    from longhaul.cluster.connect import default_storage
    from longhaul.recipe.load import load_sweep
    from longhaul.resilience.sweep_directory import SweepDirectory
    from longhaul.tuning.sweep_plan import plan

    root = storage or default_storage()
    before, head = SweepDirectory.open(root, first).state(), second
    if Path(second).suffix in (".yaml", ".yml"):
        sweep, head = load_sweep(second), Path(second).name
        after = plan(sweep, root, sweep.name, folder=Path.cwd()).state
    else:
        after = SweepDirectory.open(root, second).state()
    Console(highlight=False).print(difference_table(before, after, (first, head)))


def _go(
    sweep: SweepRecipe, name: str, storage: str | None, *, force: list[str], any_code: bool, plan_only: bool, address: str | None
) -> None:
    from longhaul.cli.sweep_tables import best_lines, cells_table, plan_lines, plan_table
    from longhaul.cluster.connect import connect, default_storage
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    console = Console(highlight=False, soft_wrap=True)
    root = storage or default_storage()
    with console.status("looking at the cells"):
        planned = plan(sweep, root, name, folder=Path.cwd(), force=force, any_code=any_code)
    if plan_only:
        console.print(plan_table(planned))
    for line in plan_lines(planned):
        console.print(line)
    if plan_only:
        return
    if any(record.open for record in planned.state.cells) or sweep.search is not None:
        console.print(f"[dim]{connect(address)}[/]")
    stopped = False
    with _Bars(console, planned) as bars:
        try:
            run(planned, bars.show)
        except KeyboardInterrupt:
            stopped = True
    state = planned.state
    console.print(cells_table(state))
    for note in state.notes:
        console.print(f"[dim]{escape(note)}[/]")
    for record in state.cells:
        if record.standing == "failed":
            console.print(f"[red]{escape(record.label)} failed[/]: {escape(record.reason or '')}")
    console.print(f"table: {escape(planned.directory.storage.uri)}/table.parquet")
    for line in best_lines(planned.directory, state):
        console.print(line)
    failed = sum(record.standing == "failed" for record in state.cells)
    left = sum(record.open for record in state.cells)
    if failed or left:
        console.print(f"{failed} failed, {left} not finished: the same command goes on with them")
    if stopped or failed:
        raise typer.Exit(130 if stopped else 1)
    at = f" --storage {shlex.quote(storage)}" if storage else ""
    console.print(f"next: longhaul report {state.name}{escape(at)}")


class _Bars:
    """One bar for all cells, and one for each that trains."""

    def __init__(self, console: Console, planned: SweepPlan) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._all = self._progress.add_task("cells", total=None, note="")
        self._tasks: dict[str, TaskID] = {}
        self._planned = planned

    def show(self, state: SweepState) -> None:
        """Bring the bars up to date."""
        over = [record for record in state.cells if not record.open]
        best = state.best
        note = f"best {best.label} {best.score:.4f}" if best is not None and best.score is not None else ""
        self._progress.update(self._all, total=len(state.cells), completed=len(over), note=escape(note))
        running = {record.key: record for record in state.cells if record.standing == "running"}
        for key in [key for key in self._tasks if key not in running]:
            self._progress.remove_task(self._tasks.pop(key))
        for key, record in running.items():
            if key not in self._tasks:
                self._tasks[key] = self._progress.add_task(
                    f"  {escape(record.label)}", total=self._planned.epochs_of(record), note="epochs"
                )
            epoch = record.scores[-1][0] if record.scores else 0
            told = "epochs" if record.score is None else f"epochs  {state.goal} {record.score:.4f}"
            self._progress.update(self._tasks[key], completed=round(epoch, 2), note=told)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
