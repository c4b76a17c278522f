"""Pictures of a run: its training curves, its confusion matrices, several runs' curves in one.

Figures are made without pyplot, so nothing is registered anywhere and any thread may draw. Colours are those of Okabe and Ito
("Color Universal Design", 2008), and maps go from light to dark in one hue: both are readable with any colour vision.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from longhaul.errors import UserError
from longhaul.insight.runs import goal_metric
from longhaul.resilience.run_directory import RunDirectory

BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8A8A"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#000000")
"""Colours of several lines, in this order."""
DASHES = ("-", "--", "-.", ":")  # the second mark of a run, besides its colour
_SMOOTH_POINTS = 200  # about how many independent points a smoothed curve keeps
_NUMBERED_CLASSES = 20
_NAMED_CLASSES = 60
_DPI = 150

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One metric over the steps of a run that may have been taken back to a checkpoint and gone on from there.

    Attributes:
        steps, values: (N,) each, by step: the run as it stands, each stretch from the segment that counts.
        undone: for each segment that lost its end to a later one, the (M,) steps and values of that end.
    """

    steps: Floats
    values: Floats
    undone: list[tuple[Floats, Floats]]


def draw_run(run: RunDirectory) -> list[str]:
    """Draw a run's curves and confusion matrices into its `pictures/`; returns the addresses.

    Raises:
        IntegrityError: a stored part is damaged.
    """
    metrics, summary = run.metrics(), run.summary()
    pictures = []
    if len(metrics):
        figure = training_figure(metrics, title=run.name, goal=goal_metric(summary))
        pictures.append(run.write_picture("curves.png", png(figure)))
    newest = {}
    for event in run.events().to_pylist():
        if event["kind"] in ("confusion", "pr_curves"):
            detail = json.loads(event["detail"])
            newest[event["kind"], str(detail.get("split", "test"))] = detail
    for (kind, split), detail in newest.items():
        title = f"{run.name}: {split} split"
        if kind == "confusion":
            figure = confusion_figure(np.asarray(detail["matrix"]), detail["classes"], title=title)
        else:
            figure = precision_recall_figure(np.asarray(detail["curves"]), detail["classes"], title=title)
        pictures.append(run.write_picture(f"{kind.replace('_', '-')}-{split}.png", png(figure)))
    return pictures


def compare_picture(runs: Sequence[RunDirectory]) -> bytes:
    """A PNG with the loss and goal curves of several runs, one colour and dash each.

    Raises:
        UserError: none of them has measured anything.
    """
    tables = {run.name: run.metrics() for run in runs}
    if not any(map(len, tables.values())):
        raise UserError("compare: none of these runs has metrics", "Wait for the first steps, or leave out --picture")
    goals = {goal for goal in (goal_metric(run.summary()) for run in runs) if goal}
    return png(comparison_figure(tables, goal=goals.pop() if len(goals) == 1 else "val/loss"))


def training_figure(metrics: pa.Table, *, title: str, goal: str) -> Figure:
    """Four panels over the steps: loss, the goal, learning rate, throughput; only those that the run has measured.

    Args:
        metrics: `series.METRICS`, sorted as `read_series` sorts.
        title: the run's name.
        goal: a metric such as `val/top1`, or empty.
    """
    there = set(metrics.column("name").to_pylist())
    panels = [
        (["train/loss", "val/loss"], "loss", [BLUE, ORANGE]),
        ([goal], goal, [GREEN]),
        (["train/lr"], "learning rate", [PURPLE]),
        (["train/samples_per_s"], "throughput (samples/s)", [SKY]),
    ]
    shown = [(names, label, colours) for names, label, colours in panels if there & set(names)]
    figure, grid = _figure(len(shown), title)
    restarts = _restarts(metrics)
    last = max(float(_column(metrics, "step").max()), 1.0)
    for axes, (names, label, colours) in zip(grid, shown, strict=True):
        for name, colour in zip(names, colours, strict=True):
            if name in there:
                _draw_metric(axes, curve(metrics, name), name, colour)
        _dress(axes, label)
        axes.set_xlim(-0.02 * last, 1.02 * last)  # the same in all panels
        for number, step in enumerate(restarts):
            axes.axvline(step, color=GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=0, label="restart" if not number else None)
        if len(names) > 1 or restarts:
            axes.legend(frameon=False, fontsize=9)
        if names == ["train/lr"]:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    return figure


def comparison_figure(tables: dict[str, pa.Table], *, goal: str) -> Figure:
    """The smoothed training loss and the goal of several runs, by run name.

    Args:
        tables: for each run its `series.METRICS`.
        goal: a metric that all of them measure, such as `val/top1`.
    """
    figure, (losses, goals) = _figure(2, "")
    for number, (name, table) in enumerate(tables.items()):
        look: dict[str, Any] = {"color": CYCLE[number % len(CYCLE)], "linestyle": DASHES[number // len(CYCLE) % len(DASHES)]}
        for axes, metric, smooth in ((losses, "train/loss", True), (goals, goal, False)):
            drawn = curve(table, metric)
            if len(drawn.steps):
                axes.plot(drawn.steps, smoothed(drawn.values) if smooth else drawn.values, linewidth=1.8, label=name, **look)
    _dress(losses, "training loss (smoothed)")
    _dress(goals, goal)
    for axes in (losses, goals):
        if axes.get_lines():
            axes.legend(frameon=False, fontsize=9)
    return figure


def confusion_figure(matrix: npt.NDArray[Any], classes: Sequence[str], *, title: str) -> Figure:
    """A confusion matrix: rows are the truth, columns the answers, colours shares of the row, numbers counts.

    Args:
        matrix: (C, C) counts.
        classes: the C names.
        title: shown above, with the share of right answers.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.trace(counts) / max(counts.sum(), 1)
    side = float(np.clip(2.5 + 0.45 * size, 4.5, 11))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained", dpi=_DPI)
    axes = figure.add_subplot()
    # The square root brings out a class's few errors, which a linear scale hides beside its many right answers.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    if size <= _NUMBERED_CLASSES:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    every = -(-size // _NAMED_CLASSES)
    ticks, names = list(range(0, size, every)), [str(classes[i])[:18] for i in range(0, size, every)]
    upright = max(map(len, names)) > 3
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=9 if size <= 30 else 6)
    axes.set_yticks(ticks, names, fontsize=9 if size <= 30 else 6)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    axes.set_title(f"{title}\n{right:.2%} of {counts.sum():,.0f} right", fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format="{x:.0%}", ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return figure


def precision_recall_figure(curves: npt.NDArray[Any], classes: Sequence[str], *, title: str) -> Figure:
    """`draw_precision_recall` in a figure of its own."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained", dpi=_DPI)
    draw_precision_recall(figure.add_subplot(), curves, classes, title=f"{title}, IoU 0.5")
    return figure


def draw_precision_recall(axes: Axes, curves: npt.NDArray[Any], classes: Sequence[str], *, title: str) -> None:
    """Precision over recall, a line a class.

    Args:
        axes: bare ones.
        curves: (C, R) precision at R recalls from 0 to 1; 0 where that recall is not reached.
        classes: the C names.
        title: shown above.
    """
    recall = np.linspace(0, 1, curves.shape[1])
    for number, (name, precision) in enumerate(zip(classes, curves, strict=True)):
        reached = np.flatnonzero(precision > 0)
        end = reached[-1] + 1 if len(reached) else 0
        look: dict[str, Any] = {"color": CYCLE[number % len(CYCLE)], "linestyle": DASHES[number // len(CYCLE) % len(DASHES)]}
        axes.plot(recall[:end], precision[:end], linewidth=2, label=f"{name}: average precision {precision.mean():.3f}", **look)
        if end:
            axes.plot([recall[end - 1]] * 2, [precision[end - 1], 0], linewidth=0.8, alpha=0.5, **look)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def curve(metrics: pa.Table, name: str) -> Curve:
    """A metric's curve; `metrics` is sorted as `read_series` sorts."""
    every_segment, every_step = _column(metrics, "segment"), _column(metrics, "step")
    rows = metrics.filter(pc.equal(metrics.column("name"), name))
    segments, steps, values = _column(rows, "segment"), _column(rows, "step"), _column(rows, "value")
    counts = np.ones(len(rows), dtype=bool)
    undone = []
    for segment in np.unique(segments):
        later = every_step[every_segment > segment]
        lost = (segments == segment) & (steps >= later.min()) if len(later) else np.zeros(len(rows), dtype=bool)
        counts &= ~lost
        if lost.any():
            undone.append((steps[lost], values[lost]))
    return Curve(steps[counts], values[counts], undone)


def smoothed(values: Floats) -> Floats:
    """An exponential moving average without the pull to zero at its start; the window grows with the curve.

    Args:
        values: (N,); values that are not finite are left out of the average.
    """
    window = max(len(values) / _SMOOTH_POINTS, 5.0)
    keep = 1 - 1 / window
    total = weight = 0.0
    out = np.empty_like(values)
    for i, value in enumerate(values):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        out[i] = total / weight if weight else np.nan
    return out


def png(figure: Figure, dpi: float | None = None, *, quick: bool = False) -> bytes:
    """The figure as PNG.

    Args:
        figure: any.
        dpi: other than its own.
        quick: a little larger, and written in less time; for who draws many.
    """
    buffer = io.BytesIO()
    options = {"compress_level": 3} if quick else {}
    figure.savefig(buffer, format="png", dpi=dpi or figure.dpi, pil_kwargs=options)
    return buffer.getvalue()


def _figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(panels, 2) or 1
    rows = -(-panels // columns) or 1
    figure = Figure(figsize=(6.2 * columns, 3.6 * rows + 0.3), layout="constrained", dpi=_DPI)
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(rows, columns, squeeze=False)
    flat = list(grid.flat)
    for spare in flat[panels:]:
        figure.delaxes(spare)
    return figure, flat[:panels]


def _draw_metric(axes: Axes, drawn: Curve, name: str, colour: str) -> None:
    """One metric: what counts in its colour, what a restart undid in grey; a noisy one pale, with its average on top."""
    values = drawn.values
    for steps, lost in drawn.undone:
        dot = "o" if len(steps) < 3 else None
        axes.plot(steps, lost, color=GREY, linewidth=1, alpha=0.6, marker=dot, markersize=3, label="_undone")
    if name in ("train/loss", "train/samples_per_s") and len(values) >= 20:
        axes.plot(drawn.steps, values, color=colour, linewidth=0.8, alpha=0.3, label="_raw")
        values = smoothed(values)
    marker = "o" if name.startswith("val/") and len(values) <= 60 else None
    axes.plot(drawn.steps, values, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=name)


def _dress(axes: Axes, label: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)


def _restarts(metrics: pa.Table) -> list[float]:
    """The first logged step of every segment but the first."""
    segments, steps = _column(metrics, "segment"), _column(metrics, "step")
    return [float(steps[segments == segment].min()) for segment in np.unique(segments)[1:]]


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)
