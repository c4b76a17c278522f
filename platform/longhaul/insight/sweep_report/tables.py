"""The report's tables: all cells with all their figures, folds with mean and deviation, agreement of heat maps."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longhaul.insight.explain.across import Consistency
from longhaul.insight.explain.attribution import METHODS
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.sweep_report.cells import FOLD, MODEL, RESOLUTION, Cell, plain
from longhaul.insight.sweep_report.explanations import TOP_PERCENT
from longhaul.insight.sweep_report.gathering import Explained
from longhaul.insight.sweep_report.groups import grouped, is_share, test_metric
from longhaul.resilience.sweep_directory import SweepState

_FIRST = ("top1", "precision", "recall", "f1", "map", "map50")  # of the results, in this order; others where none of these is
_UNTOLD = ("loss",)
NONE = "–"


@dataclass(frozen=True)
class Column:
    """One column of the table of cells.

    Attributes:
        name: in the CSV file, with its unit.
        title: on the page; `unit` below it.
        value: of a cell; None where it has none.
        text: a value as the page shows it.
        left: whether it is a name and not a number.
        key: whether it tells the rows apart.
    """

    name: str
    title: str
    unit: str
    value: Callable[[Cell], Any]
    text: Callable[[Any], str]
    left: bool = False
    key: bool = False

    @property
    def style(self) -> str:
        """Its classes on the page."""
        return " ".join(name for name, it_is in (("left", self.left), ("key", self.key)) if it_is)


@dataclass(frozen=True)
class Table:
    """A small table of the page: heads and rows of texts; the first `names` columns are no numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def columns(cells: Sequence[Cell], state: SweepState) -> list[Column]:
    """The columns for these cells: coordinates that vary, standing, goal, results, cost, speed, length."""
    searched = any(cell.trial for cell in cells)
    found = [Column("trial", "trial", "", lambda cell: cell.trial, str, key=True)] if searched else []
    found += [
        Column("family", "family", "", lambda cell: cell.family, str, left=True),
        Column("model", "model", "", lambda cell: cell.model, str, left=True, key=not searched),
        Column("resolution_px", "resolution", "px", lambda cell: cell.resolution, str),
    ]
    coordinates = dict.fromkeys(name for cell in cells for name in cell.record.coordinates)
    for name in coordinates:
        if name not in (MODEL, RESOLUTION, FOLD):
            found.append(Column(name, name.rpartition(".")[2], "", _coordinate(name), plain))
    if any(cell.fold is not None for cell in cells):
        found.append(Column("fold", "fold", "", lambda cell: cell.fold, str))
    found.append(Column("standing", "standing", "", lambda cell: cell.record.standing, str, left=True))
    found.append(Column(state.goal, state.goal, _unit(state.goal), lambda cell: cell.record.score, _metric_text(state.goal)))
    for metric in result_metrics(cells, state.goal):
        found.append(Column(metric, metric, _unit(metric), _result(metric), _metric_text(metric)))
    return [*found, *_COST]


def result_metrics(cells: Sequence[Cell], goal: str) -> list[str]:
    """The results that the table shows: the goal's, then the usual ones that any cell has, or else all."""
    there = sorted({name for cell in cells for name in cell.results})
    usual = [f"test/{name}" for name in _FIRST if f"test/{name}" in there]
    chosen = usual or [name for name in there if name.rpartition("/")[2] not in _UNTOLD]
    first = [test_metric(goal)] if test_metric(goal) in there else []
    return list(dict.fromkeys([*first, *chosen]))


def by_score(cells: Sequence[Cell], state: SweepState) -> list[Cell]:
    """The best first; those without a score last, in the sweep's order."""
    sign = 1 if state.direction == "max" else -1

    def rank(cell: Cell) -> tuple[bool, float]:
        score = cell.record.score
        return (False, -sign * score) if score is not None and math.isfinite(score) else (True, 0.0)

    return sorted(cells, key=rank)


def csv_bytes(cells: Sequence[Cell], state: SweepState) -> bytes:
    """All cells as they are on the page, with figures in full, and key, reason, seconds and the run's address beside them."""
    shown = columns(cells, state)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*(column.name for column in shown), "reason", "key", "run"])
    for cell in by_score(cells, state):
        values = [_csv_value(column.value(cell)) for column in shown]
        writer.writerow([*values, _csv_value(cell.record.reason), cell.key, cell.run.uri if cell.run is not None else ""])
    return text.getvalue().encode()


def folds_table(cells: Sequence[Cell], state: SweepState) -> Table | None:
    """Mean and standard deviation over the folds of every combination, best first; None without folds."""
    if all(cell.fold is None for cell in cells):
        return None
    metrics = result_metrics(cells, state.goal)
    sign = 1 if state.direction == "max" else -1
    scored = [(group, score) for group in grouped(cells) if (score := group.score()) is not None]
    rows = []
    for group, score in sorted(scored, key=lambda pair: -sign * pair[1].mean):
        spreads = [(state.goal, score), *((metric, group.result(metric)) for metric in metrics)]
        texts = [NONE if s is None else f"{_metric_text(m)(s.mean)} ± {_metric_text(m)(s.deviation)}" for m, s in spreads]
        rows.append((group.label, f"{score.count} of {len(group.cells)}", *texts))
    return Table(("cell", "folds", state.goal, *metrics), tuple(rows)) if rows else None


def agreement_table(lines: Mapping[str, Consistency]) -> Table | None:
    """Each model's agreement with its highest resolution, by method and lower resolution; None where there is none."""
    rows = []
    for name, one in lines.items():
        for method in METHODS:
            for pair in one.to_highest(method):
                rank, overlap = pair.agreement.rank_correlation, pair.agreement.top_iou[TOP_PERCENT]
                interval = NONE if rank.low is None or rank.high is None else f"{rank.low:.2f} to {rank.high:.2f}"
                texts = (_two(rank.mean), interval, _two(rank.chance), _two(overlap.mean), _two(overlap.chance))
                rows.append((name, TITLES[method], f"{pair.low} with {pair.high}", str(len(one.images)), *texts))
    heads = (
        "model",
        "method",
        "px",
        "images",
        "rank correlation",
        "95 % interval",
        "by chance",
        f"IoU of top {TOP_PERCENT} %",
        "by chance",
    )
    return Table(heads, tuple(rows), names=2) if rows else None


def layers_table(lines: Sequence[Sequence[Explained]]) -> Table | None:
    """What Grad-CAM looked at in each model: the layer, and its cells along a side at each resolution; None without any."""
    rows = []
    for line in lines:
        looks = [(one.explanation.resolution, *at) for one in line if (at := one.explanation.looked_at) is not None]
        sides = {side for _, _, side in looks}
        for name in dict.fromkeys(layer for _, layer, _ in looks):
            told = ", ".join(f"{side} at {resolution} px" for resolution, layer, side in looks if layer == name)
            rows.append((line[0].cell.line, name, told, "differ" if len(sides) > 1 else ""))
    return Table(("model", "layer", "cells along a side", "sides"), tuple(rows), names=4) if rows else None


def _coordinate(name: str) -> Callable[[Cell], Any]:
    return lambda cell: cell.record.coordinates.get(name)


def _result(metric: str) -> Callable[[Cell], float | None]:
    return lambda cell: cell.results.get(metric)


def _unit(metric: str) -> str:
    return "%" if is_share(metric) else ""


def _metric_text(metric: str) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:.2f}") if is_share(metric) else (lambda value: f"{value:.4g}")


def _two(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{min(digits, 6)}f}"


def _csv_value(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a quote before it; numbers stay."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


_COST = (
    Column("parameters", "parameters", "M", lambda c: c.count and c.count.parameters, lambda v: _significant(v / 1e6)),
    Column("gflops", "operations", "GFLOPs", lambda c: c.count and c.count.flops / 1e9, _significant),
    Column("latency_p50_ms", "latency p50", "ms", lambda c: c.profile and c.profile.single.p50_ms, _significant),
    Column("latency_p99_ms", "latency p99", "ms", lambda c: c.profile and c.profile.single.p99_ms, _significant),
    Column("samples_per_s", "throughput", "samples/s", lambda c: c.profile and c.profile.batched.samples_per_s, _significant),
    Column("peak_memory_mib", "peak memory", "MiB", lambda c: c.profile and c.profile.peak_memory_mb, _significant),
    Column("epochs", "epochs", "", lambda c: c.summary.epoch if c.summary is not None else None, lambda v: f"{v:.4g}"),
    Column("seconds", "trained for", "s", lambda c: c.record.seconds or None, _significant),
)
