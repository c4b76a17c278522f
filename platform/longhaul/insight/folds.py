"""Pictures of a cross-validation: its folds' results side by side, their precision-recall curves in one."""

from __future__ import annotations

import json

import numpy as np
from matplotlib.figure import Figure

from longhaul.insight.curves import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, draw_run, png
from longhaul.resilience.fold_report import FoldReport
from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import Storage

_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def draw_folds(storage: str, report: FoldReport) -> list[str]:
    """Draw the folds together into `<storage>/<name>/pictures/`, and each fold's own pictures; returns the addresses.

    Raises:
        IntegrityError: a stored part is damaged.
    """
    pictures, curves, classes = [], [], []
    for fold in report.folds:
        if fold.status == "pending":
            continue
        run = RunDirectory.open(f"{storage.rstrip('/')}/{fold.run}")
        draw_run(run)
        found = [json.loads(event["detail"]) for event in run.events().to_pylist() if event["kind"] == "pr_curves"]
        if found:
            curves.append(found[-1]["curves"])
            classes = found[-1]["classes"]
    place = Storage.open(f"{storage.rstrip('/')}/{report.name}")
    if any(fold.results for fold in report.folds):
        pictures.append(_write(place, "folds.png", folds_figure(report)))
    if curves:
        pictures.append(_write(place, "pr-curves.png", curves_figure(np.asarray(curves), classes, title=report.name)))
    return pictures


def folds_figure(report: FoldReport) -> Figure:
    """Each test result as a group of bars, one a fold, with the mean as a line."""
    metrics = sorted({metric for fold in report.folds for metric in fold.results})
    done = [fold for fold in report.folds if fold.results]
    figure = Figure(figsize=(max(1.6 * len(metrics), 5), 4), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    width = 0.8 / len(done)
    for place, fold in enumerate(done):
        at = np.arange(len(metrics)) - 0.4 + width * (place + 0.5)
        values = [fold.results.get(metric, 0.0) for metric in metrics]
        axes.bar(at, values, width * 0.9, color=_CYCLE[place % len(_CYCLE)], label=f"fold {fold.number}")
    for place, metric in enumerate(metrics):
        mean, deviation = report.spread(metric)
        axes.hlines(mean, place - 0.42, place + 0.42, color="black", linewidth=1)
        axes.text(place, 1.02, f"{mean:.3f}\n± {deviation:.3f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(metrics)), [metric.removeprefix("test/") for metric in metrics])
    axes.set_ylim(0, 1.15)
    axes.set_title(f"{report.name}: the same test samples for every fold, mean ± standard deviation", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=min(len(done), 5), loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def curves_figure(curves: np.ndarray, classes: list[str], *, title: str) -> Figure:
    """Precision over recall at IoU 0.5, a panel a class: each fold a thin line, their mean a thick one.

    Args:
        curves: (folds, C, 101).
        classes: the C names.
        title: shown above.
    """
    figure = Figure(figsize=(4.2 * len(classes), 4.2), layout="constrained", dpi=150)
    figure.suptitle(f"{title}: test samples, IoU 0.5", fontsize=11)
    recall = np.linspace(0, 1, curves.shape[2])
    for place, (name, axes) in enumerate(zip(classes, figure.subplots(1, len(classes), squeeze=False)[0], strict=True)):
        for one in curves[:, place]:
            axes.plot(recall, one, color=GREY, linewidth=0.8, alpha=0.7)
        mean = curves[:, place].mean(axis=0)
        axes.plot(recall, mean, color=_CYCLE[place % len(_CYCLE)], linewidth=2.2)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
        axes.set_title(f"{name}: average precision {mean.mean():.3f}", fontsize=10)
        axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _write(place: Storage, name: str, figure: Figure) -> str:
    place.write_bytes(f"pictures/{name}", png(figure))
    return f"{place.uri}/pictures/{name}"
