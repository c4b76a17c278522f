"""What the page says: facts, the table of cells, and sections of texts, pictures and tables for the template."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longhaul.insight.live import duration_text
from longhaul.insight.sweep_report.blocks import Block
from longhaul.insight.sweep_report.cell_pages import PAGE_FILE
from longhaul.insight.sweep_report.cells import Cell
from longhaul.insight.sweep_report.fronts import Chart, measured_like
from longhaul.insight.sweep_report.groups import is_share, test_metric
from longhaul.insight.sweep_report.tables import NONE, Column, by_score, columns
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.sweep_directory import Standing, SweepState

_STANDINGS: tuple[Standing, ...] = ("finished", "stopped", "skipped", "failed", "running", "planned")
_CLOSE = 0.01  # of the best: as good, for a recommendation


@dataclass(frozen=True)
class Section:
    """One section after the table of cells."""

    anchor: str
    title: str
    texts: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Field:
    """One field of the table of cells: plain, with a link, or a standing with its reason and the reason's number below.

    `style` is `left` for names, and `key` for what stays in sight when the table is moved sideways.
    """

    text: str
    style: str
    href: str = ""
    reason: str = ""
    number: int = 0


@dataclass(frozen=True)
class Row:
    """One row of the table of cells; `mark` is `best`, `over` (not trained to its end) or empty."""

    cells: tuple[Field, ...]
    mark: str


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    name: str
    goal: str
    drawn: str
    version: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    measured: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    reasons: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    problems: tuple[tuple[str, str], ...]


def table_rows(cells: Sequence[Cell], state: SweepState) -> tuple[list[Column], list[Row], list[tuple[str, str]]]:
    """The columns that have any value, the rows by score, and why cells have not finished, numbered as in the rows."""
    ordered = by_score(cells, state)
    shown = [column for column in columns(cells, state) if any(column.value(cell) is not None for cell in cells)]
    best = state.best
    rows, reasons = [], []
    for cell in ordered:
        if cell.record.reason:
            reasons.append((cell.label, cell.record.reason))
        fields = [_field(column, cell, len(reasons)) for column in shown]
        mark = "best" if best is not None and cell.key == best.key else "" if cell.finished else "over"
        rows.append(Row(tuple(fields), mark))
    return shown, rows, reasons


def facts(cells: Sequence[Cell], state: SweepState, asked: SweepRecipe | None, charts: Sequence[Chart]) -> list[tuple[str, str]]:
    """What was asked and what came of it, a name and a text each."""
    counts = Counter(cell.record.standing for cell in cells)
    standings = ", ".join(f"{counts[standing]} {standing}" for standing in _STANDINGS if counts[standing])
    found = [("sweep", _asked(asked)), ("when", _when(cells))]
    found.append(("goal", f"{state.goal}, {'the higher' if state.direction == 'max' else 'the lower'} the better"))
    found.append(("cells", f"{len(cells)}: {standings}" if cells else "none yet"))
    found.append(("best cell", _best(cells, state)))
    found += _recommended(charts, state)
    found.append(("time", _time(cells, state)))
    found += [("dollars", f"{state.dollars:,.2f}")] if state.dollars else []
    found += _operations(cells)
    return [(name, text) for name, text in found if text]


def measured_on(cells: Sequence[Cell]) -> str:
    """How speed was measured, in one or two sentences; empty where nothing was."""
    alike = measured_like(cells)
    first = next((cell.profile for cell in cells if cell.key in alike and cell.profile is not None), None)
    if first is None:
        return ""
    batches = sorted({cell.profile.batched.batch for cell in cells if cell.profile is not None})
    where = f"Latency (batch 1) and throughput (batch {', '.join(map(str, batches))}): {first.device}, {first.precision}, "
    told = f"{where}torch {first.torch}, CPU threads: {first.threads}."
    told += f" No peak memory: {first.no_peak_memory}." if first.no_peak_memory else ""
    others = sum(cell.profile is not None for cell in cells) - len(alike)
    return told + (f" {others} cells were measured elsewhere or otherwise and are not drawn with these." if others else "")


def value_text(metric: str, value: float) -> str:
    """A metric's value, shares in percent."""
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4g}"


def _field(column: Column, cell: Cell, number: int) -> Field:
    value = column.value(cell)
    text = NONE if value is None else column.text(value)
    if column.name == "model":
        return Field(text, column.style, href=f"{cell.folder}/{PAGE_FILE}")
    if column.name == "standing" and cell.record.reason:
        return Field(text, column.style, reason=cell.record.reason, number=number)
    return Field(text, column.style)


def _asked(asked: SweepRecipe | None) -> str:
    if asked is None:
        return ""
    if asked.search is not None:
        text = f"{asked.search.kind} search over {', '.join(asked.search.space)}: {asked.search.trials} trials"
    else:
        text = "grid of " + " × ".join(f"{name} ({len(values)})" for name, values in asked.grid.items())
    folds = f", each over {asked.folds} folds" if asked.folds else ""
    stopping = f"; early stopping by {asked.stopping.kind}" if asked.stopping.kind != "none" else ""
    return f"{text}{folds}{stopping}{'; dear cells without a chance are skipped' if asked.pruning is not None else ''}"


def _when(cells: Sequence[Cell]) -> str:
    """From the first start to the last sign of any cell; cells may be older than the sweep, which takes what is there."""
    summaries = [cell.summary for cell in cells if cell.summary is not None and cell.summary.started_s]
    if not summaries:
        return ""
    first, last = min(s.started_s for s in summaries), max(s.updated_s for s in summaries)
    return f"cells trained from {_clock(first)} to {_clock(last)} UTC"


def _best(cells: Sequence[Cell], state: SweepState) -> str:
    best = state.best
    cell = next((cell for cell in cells if best is not None and cell.key == best.key), None)
    if cell is None or cell.record.score is None:
        return ""
    metric = test_metric(state.goal)
    tested = f", {metric} {value_text(metric, cell.results[metric])}" if metric in cell.results else ""
    return f"{cell.label}: {state.goal} {value_text(state.goal, cell.record.score)}{tested}"


def _recommended(charts: Sequence[Chart], state: SweepState) -> list[tuple[str, str]]:
    """The cheapest combination that is as good as the best for most purposes."""
    metric = test_metric(state.goal)
    if not is_share(metric):
        return []
    for chart in charts:
        best = max(point.value for point in chart.points)
        cheapest = min((p for p in chart.points if p.value >= best - _CLOSE), key=lambda point: point.cost)
        top = max(chart.points, key=lambda point: point.value)
        if cheapest is not top:
            share = f"at {100 * cheapest.cost / top.cost:.0f} % of the {chart.name} of {top.group.label}, which tests best"
            text = f"{cheapest.group.label}: {metric} {value_text(metric, cheapest.value)}, {share}"
            return [("within a point of the best", text)]
    return []


def _time(cells: Sequence[Cell], state: SweepState) -> str:
    run, own = f"{duration_text(3600 * state.hours)} that the sweep has run", sum(cell.record.seconds for cell in cells)
    if not own and any(cell.finished for cell in cells):
        return f"{run}; its cells had been trained before"
    return f"{run}; {duration_text(own)} of its cells' own training"


def _operations(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    costs = [(cell.record.cost, cell) for cell in cells if cell.record.cost is not None]
    whole = sum(cost for cost, _ in costs)
    if not whole:
        return []
    spent = sum(cost * cell.share_trained for cost, cell in costs)
    unknown = f" (without {len(cells) - len(costs)} cells of unknown cost)" if len(costs) < len(cells) else ""
    share = f"{100 * spent / whole:.1f} % of the {whole:.3g} that all cells take trained to their ends"
    text = f"{spent:.3g} spent, {share}{_spent_before(costs, spent)}{unknown}"
    return [("training operations", text)]


def _spent_before(costs: Sequence[tuple[float, Cell]], spent: float) -> str:
    """Of the operations those of cells that the sweep has taken over as other sweeps left them."""
    before = sum(cost * cell.share_trained for cost, cell in costs if not (cell.record.begun or cell.record.seconds))
    if not before:
        return ""
    return ", all of them before this sweep" if before == spent else f", {before:.3g} of them before this sweep"


def _clock(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_s))
