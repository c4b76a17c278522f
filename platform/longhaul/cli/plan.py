"""`longhaul plan`: what a long run on machines that come and go may expect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.cluster.simulation import Model, Outcome

_AIM = 0.97


def plan(
    days: Annotated[float, typer.Option(help="Wall time of the run.")] = 30.0,
    nodes: Annotated[str, typer.Option(help="Machines; several numbers, with commas, are compared.")] = "4,16",
    interruptions: Annotated[
        str, typer.Option(help="Share of the machines taken away a month; several, with commas, are compared.")
    ] = "0.1,0.2",
    crashes: Annotated[
        float, typer.Option(min=0, help="Processes and machines that fail without notice, a machine and month.")
    ] = 0.2,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Take restart, detection and save times from this run's record.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Where RUN is: a folder or s3://bucket/prefix.", envvar="LONGHAUL_STORAGE")
    ] = "runs",
    runs: Annotated[int, typer.Option(min=20, help="Simulated runs of each kind.")] = 400,
) -> None:
    """Simulate a run of many days on spot machines: expected goodput, where the rest of the time goes, and what that assumes.

    A model, no promise: a few hundred simulated runs of each kind, with losses at random and saves as training would choose
    them. The assumptions are printed; `--run` replaces those that a run of yours, better one with losses, has measured.

    Examples:
      longhaul plan
      longhaul plan --days 40 --nodes 8 --interruptions 0.05,0.1,0.2
      longhaul plan --run resnet-drill --nodes 16
      longhaul plan --nodes 16 --crashes 0.7
    """
    from dataclasses import replace

    from longhaul.cluster.simulation import Model, calibrate, simulate
    from longhaul.insight.runs import resolve_run

    sizes = [int(value) for value in _numbers("nodes", nodes, least=1, most=100_000)]
    rates = _numbers("interruptions", interruptions, least=0, most=0.99)
    if days <= 0:
        raise UserError(f"--days {days:g}: is no length of time", "Give a number above 0")
    model = replace(Model() if run is None else calibrate(resolve_run(run, storage)), crashes=crashes)
    outcomes = {
        (size, rate): simulate(replace(model, interruptions=rate), nodes=size, days=days, runs=runs)
        for size in sizes
        for rate in rates
    }
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(outcomes, days))
    for line in (*_what_is_left(outcomes, days), *_assumptions(model, run)):
        console.print(line)


def _numbers(option: str, text: str, *, least: float, most: float) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--{option} {text}: is no number", "Give one, or several with commas") from None
    if not all(least <= value <= most for value in values):
        raise UserError(f"--{option} {text}: out of range", f"Give {least:g} to {most:g}")
    return values


def _table(outcomes: dict[tuple[int, float], Outcome], days: float) -> Table:
    """A column for each case, a row for each class of time."""
    title = f"expected goodput of a run of {days:g} days"
    table = Table("", *(f"{size} nodes, {rate:.0%} a month".replace("%", " %") for size, rate in outcomes), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    ranges = [outcome.range() for outcome in outcomes.values()]
    table.add_row("goodput", *(f"{mean:.2%}" for mean, _, _ in ranges), style="bold")
    table.add_row("90 % of the runs", *(f"{low:.2%} to {high:.2%}" for _, low, high in ranges))
    table.add_row("restarts a run", *(f"{outcome.losses.mean():.1f}" for outcome in outcomes.values()), end_section=True)
    lost = [name for name in next(iter(outcomes.values())).seconds if name not in ("productive", "data", "paused")]
    for name in lost:
        table.add_row(name, *(f"{outcome.share(name):.3%}" for outcome in outcomes.values()))
    return table


def _what_is_left(outcomes: dict[tuple[int, float], Outcome], days: float) -> list[str]:
    """How much dearer a restart may get before the aim is missed."""
    lines = []
    for (size, rate), outcome in outcomes.items():
        low, losses = outcome.range()[1], float(outcome.losses.mean())
        spare_min = (outcome.range()[0] - _AIM) * days * 1440 / max(losses, 1e-9)
        case = f"{size} nodes, {100 * rate:g} % a month: {100 * _AIM:g} %"
        verdict = "is met by 95 of 100 runs" if low >= _AIM else "is not met by 95 of 100 runs"
        room = (
            f"a restart may take {spare_min:.0f} min more" if spare_min > 0 else f"a restart must take {-spare_min:.0f} min less"
        )
        lines.append(f"{case} {verdict}; on average {room}" if losses >= 0.1 else f"{case} {verdict}")
    return lines


def _assumptions(model: Model, run: str | None) -> list[str]:
    source = "assumed" if run is None else f"measured in {run} where it could be, else assumed"
    return [
        f"{source}: a save stalls training for {model.stall_s:.3g} s and counts after {model.save_s:.3g} s; a restart takes "
        f"{model.restart_s:.3g} s; a lost process is noticed after {model.detect_s:.3g} s, a hang after {model.hang_s:.3g} s;",
        f"another machine comes after {model.wait_s:.3g} s on average, and the run waits for it (it does not go on with fewer); "
        f"{model.notice_share:.0%} of the interruptions give notice in time for a save;",
        f"crashes {model.crashes:g} a machine and month, hangs {model.hangs:g} a run and month, at random, each for itself; "
        f"validation takes {model.validation_share:.2%} of the time between saves.",
        "not in the model: data that come too slowly, rollbacks, losses during a restart, lost storage, whole zones lost.",
    ]
