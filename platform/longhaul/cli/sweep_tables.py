"""What `longhaul sweep` prints: the plan, how the cells stand, all sweeps, the difference of two."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from longhaul.insight.live import duration_text
from longhaul.resilience.lease import holder
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CellRecord, SweepDirectory, SweepState
from longhaul.tuning.sweep_plan import SweepPlan

_STYLES = {"finished": "green", "running": "cyan", "planned": "dim", "stopped": "yellow", "skipped": "yellow", "failed": "red"}
_UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))
_UNDRIVEN = "running (no driver)"  # it has died, or was stopped: the same command goes on
_STANDINGS = ("finished", "running", "planned", "stopped", "skipped", "failed")


def plan_table(planned: SweepPlan) -> Table:
    """Every cell with what its training will cost."""
    cells = planned.state.cells
    whole = sum(record.cost or 0.0 for record in cells)
    unit, scale = _unit(max((record.cost or 0.0 for record in cells), default=0.0))
    table = _table(cells, "stands", unit, "share", "GPU")
    for record in cells:
        cost = record.cost or 0.0
        gpu = f"{record.gpus:g}" if record.gpus else "-"
        table.add_row(*_values(record), _standing(record), f"{cost / scale:.3g}", f"{cost / (whole or 1.0):.1%}", gpu)
    table.caption = f"{whole / scale:.4g} {unit} in all (a multiplication and an addition count as two)"
    if any(record.gpus for record in cells):  # a plan asks no cluster what it has
        table.caption += "; GPU: what a cell takes where the cluster has any"
    return table


def _unit(operations: float) -> tuple[str, float]:
    """The unit that suits an amount of floating-point operations, and how many there are in one."""
    return next(((unit, scale) for unit, scale in _UNITS if operations >= scale), _UNITS[-1])


def plan_lines(planned: SweepPlan) -> list[str]:
    """What will happen, in a few lines."""
    cells = planned.state.cells
    done = sum(record.standing == "finished" for record in cells)
    open_cells = [record for record in cells if record.open]
    begun = sum(record.steps > 0 for record in open_cells)
    if planned.sweep.search is not None:
        search, refused = planned.sweep.search, len(planned.state.refused)
        cells_of = f"{search.trials} trials by {search.kind}: {len(cells)} cells drawn, {done} finished, {begun} begun"
        lines = [cells_of + (f"; {refused} draws make no recipe" if refused else "")]
    else:
        lines = [f"{len(cells)} cells: {done} finished, {begun} begun, {len(open_cells) - begun} to train"]
    for key, modules in list(planned.other_code.items())[:1]:
        count = len(planned.other_code)
        what = f"changed since: {', '.join(modules[:4])}" if modules else "nobody knows what has changed"
        lines.append(f"[yellow]{count} of them were trained by other code, such as {key}[/]: {what}")
        lines.append("    --any-code takes them as they are")
    if planned.gone:
        gone = f"{len(planned.gone)} cells are in the sweep no more, such as {escape(planned.gone[0])}"
        lines.append(f"{gone}; their runs stay where they are")
    return lines


def cells_table(state: SweepState, *, driven: bool = True) -> Table:
    """How every cell stands, the best first.

    Args:
        state: of the sweep.
        driven: whether a process drives it; without one, nothing runs that is said to.
    """
    ranked = _ranked(state)
    test = f"test/{state.goal.removeprefix('val/')}"
    tests = [test] if any(test in record.results for record in state.cells) else []
    why = ["why"] if any(record.reason for record in ranked) else []  # an empty column would fold the names
    table = _table(ranked, "stands", state.goal, *tests, "epochs", "time", *why)
    for record in ranked:
        score = "" if record.score is None else f"{record.score:.4f}"
        results = [f"{record.results[name]:.4f}" if name in record.results else "" for name in tests]
        epochs = f"{record.scores[-1][0]:.4g}" if record.scores else ""
        time = duration_text(record.seconds) if record.seconds else ""
        standing = _standing(record, driven=driven)
        reason = [escape(record.reason or "")] if why else []
        table.add_row(*_values(record), standing, score, *results, epochs, time, *reason)
    spent = f"the sweep has run {state.hours:.2f} h" + (f" and cost {state.dollars:.2f} dollars" if state.dollars else "")
    table.title, table.caption = f"sweep {state.name}: {_counts(state, driven=driven)}", spent
    return table


def run_lines(directory: SweepDirectory, state: SweepState) -> list[str]:
    """Where the cells' runs lie, and each cell with the name that `longhaul runs show` and `longhaul export` know its run by.

    Lines and no table: a name that is folded cannot be copied.
    """
    if not state.cells:
        return ["no runs yet"]
    ranked = [(" ".join(record.printed), record.key) for record in _ranked(state)]
    folder, longest = directory.run(ranked[0][1]).uri.rpartition("/")[0], max(len(label) for label, _ in ranked)
    return [escape(line) for line in (f"runs: {folder}", *(f"{label:{longest}}  {key}" for label, key in ranked))]


def _ranked(state: SweepState) -> list[CellRecord]:
    """The cells, the best first."""
    sign = -1 if state.direction == "max" else 1
    return sorted(state.cells, key=lambda record: (record.score is None, sign * (record.score or 0.0)))


def sweeps_table(sweeps: Sequence[SweepDirectory]) -> Table:
    """One row a sweep."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("sweep", "cells", "best", "score", "hours"):
        table.add_column(name)
    for sweep in sweeps:
        state = sweep.state()
        best = state.best
        score = "" if best is None or best.score is None else f"{state.goal} {best.score:.4f}"
        table.add_row(
            sweep.name, _counts(state, driven=is_driven(sweep)), escape(best.label) if best else "", score, f"{state.hours:.2f}"
        )
    return table


def difference_table(first: SweepState, second: SweepState, heads: tuple[str, str]) -> Table:
    """Cells by coordinates: those of one alone, and the scores of those that both have; `heads` tell the two apart."""
    table = Table("cell", *(escape(head) for head in heads), "difference", box=box.SIMPLE_HEAD)
    left, right = ({record.label: record for record in state.cells} for state in (first, second))
    for label in dict.fromkeys([*left, *right]):
        one, other = left.get(label), right.get(label)
        told = f"only in {heads[0] if other is None else heads[1]}"
        if one is not None and other is not None:
            same = "the same cell" if one.key == other.key else "another recipe, data or code"
            gap = "" if one.score is None or other.score is None or one.key == other.key else f"{other.score - one.score:+.4f}, "
            told = gap + same
        table.add_row(escape(label), _score(one), _score(other), escape(told))
    return table


def _score(record: CellRecord | None) -> Text:
    if record is None:
        return Text("-", style="dim")
    return Text(f"{record.score:.4f}" if record.score is not None else record.standing, style=_STYLES[record.standing])


def is_driven(sweep: SweepDirectory) -> bool:
    """Whether a living process trains it."""
    return holder(RunDirectory(sweep.storage)) is not None


def best_lines(directory: SweepDirectory, state: SweepState) -> list[str]:
    """The best cell, and how to make a model of it; nothing while none has a score."""
    best = state.best
    if best is None or best.score is None:
        return []
    folder, _, name = directory.run(best.key).uri.rpartition("/")
    return [
        f"best: {escape(' '.join(best.printed))}, {state.goal} {best.score:.4f}",
        f"    longhaul export {name} --storage {escape(shlex.quote(folder))}",
    ]


def _counts(state: SweepState, *, driven: bool = True) -> str:
    counts: Counter[str] = Counter(record.standing for record in state.cells)
    told = {"running": "running" if driven else _UNDRIVEN}
    named = [f"{counts[standing]} {told.get(standing, standing)}" for standing in _STANDINGS if counts[standing]]
    return ", ".join(named) or "no cells yet"


def _table(records: Sequence[CellRecord], *more: str) -> Table:
    fields = list(dict.fromkeys(path for record in records for path in record.coordinates))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for path in fields:
        table.add_column(path.rsplit(".", 1)[-1], overflow="fold")
    for name in more:
        table.add_column(name, overflow="fold")
    return table


def _values(record: CellRecord) -> list[str]:
    return [escape(value) for value in record.printed]


def _standing(record: CellRecord, *, driven: bool = True) -> Text:
    told = record.standing if driven or record.standing != "running" else _UNDRIVEN
    return Text(told + (" (forced)" if record.forced else ""), style=_STYLES[record.standing])
