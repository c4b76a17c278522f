"""Runs as tables: which there are, one in detail, several side by side; from their run directories alone."""

from __future__ import annotations

import difflib
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from longhaul.errors import LonghaulError, UserError
from longhaul.recipe import Recipe, diff
from longhaul.resilience.fold_report import load_report
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.series import latest_values
from longhaul.resilience.sweep_directory import CELLS, SweepDirectory
from longhaul.storage import Storage

Status = Literal["pending", "running", "silent", "finished", "stopped", "paused", "cancelled", "failed", "damaged"]
SILENT_AFTER_S = 120.0
_READERS = 8  # run directories read at once: on S3 nearly all of the time is waiting
_UP = ("/top1", "/top5", "/precision", "/recall", "/f1", "/samples_per_s")
_DOWN = ("/loss",)


@dataclass(frozen=True)
class RunRow:
    """One line of the list of runs.

    Attributes:
        status: `pending` has a folder and no first step yet; `silent` calls itself running and has written nothing for
            `SILENT_AFTER_S`; `damaged` cannot be read, and `problem` says why.
        goal, best: the metric that decides, and its best value so far.
        loss: the last training loss.
        age_s: seconds since the run first started; None before that.
        quiet_s: seconds since the last sign of life.
    """

    name: str
    uri: str
    status: Status
    workload: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    goal: str = ""
    best: float | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    age_s: float | None = None
    quiet_s: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunDetail:
    """One run from all sides.

    Attributes:
        recipe_sha256: hash of the resolved recipe.
        latest: the newest row of each metric, by name: `step` and `value` among them.
        checkpoints: names of the folders, sorted.
        pictures: addresses.
        events: rows of `series.EVENTS`, oldest first.
    """

    row: RunRow
    summary: Summary
    recipe_sha256: str
    latest: dict[str, dict[str, Any]]
    checkpoints: list[str]
    pictures: list[str]
    events: list[dict[str, Any]]


@dataclass(frozen=True)
class ComparedRow:
    """One line of a comparison: a value for each run (None where it has none), and the places of the best ones."""

    label: str
    values: list[Any]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side: the recipe fields in which they differ, how they went, what they measured."""

    names: list[str]
    recipe: list[ComparedRow] = field(default_factory=list)
    progress: list[ComparedRow] = field(default_factory=list)
    metrics: list[ComparedRow] = field(default_factory=list)


def resolve_run(run: str, storage: str) -> RunDirectory:
    """The run that a person means: a folder or URI, or the plain name of a run below `storage`; of a cross-validation, its best.

    Raises:
        UserError: there is none, and the message names the nearest; or it is a sweep, and the message says where its runs are.
    """
    named = run.rstrip("/")
    if "://" in named or "/" in named:
        folder, _, name = named.rpartition("/")
        candidates = [named]
    else:
        folder, name = storage.rstrip("/"), named
        candidates = [f"{folder}/{name}", name]
    for uri in candidates:
        found = RunDirectory(Storage.open(uri))
        if found.storage.exists("recipe.yaml"):
            return found
        folds = load_report(found.storage)
        if folds is not None:
            done = [fold for fold in folds.folds if fold.status == "finished"]
            if folds.best is None or len(done) < len(folds.folds):
                problem = f"crossval {run!r}: {len(done)} of {len(folds.folds)} folds have finished"
                one = f", or name a fold: {done[0].run}" if done else ""
                raise UserError(problem, f"Give the same `longhaul crossval` command again{one}")
            return RunDirectory.open(f"{uri.rpartition('/')[0] or '.'}/{folds.best.run}")
        root = uri.rpartition("/")[0] or "."
        if SweepDirectory(root, found.storage).exists:
            fix = f"`longhaul sweep status {name} --storage {shlex.quote(root)} --runs` names its runs; give one of them"
            raise UserError(f"{name} is a sweep, not a run", f"{fix}, and --storage {shlex.quote(f'{root}/{CELLS}')}")
    there = [other.name for other in RunDirectory.all(folder or "/")]
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
    fix = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(there[:8])}." if there else f"{folder} holds no runs."
    raise UserError(f"run {run!r}: not found below {folder}", f"{fix} See `longhaul runs ls --storage {folder}`")


def list_runs(storage: str, *, now_s: float | None = None) -> list[RunRow]:
    """A row for each run below `storage`, the newest first; one that cannot be read is a row too, and says why."""
    now = time.time() if now_s is None else now_s
    with ThreadPoolExecutor(_READERS) as pool:
        rows = list(pool.map(lambda run: _readable_row(run, now), RunDirectory.all(storage)))
    return sorted(rows, key=lambda row: (row.age_s if row.age_s is not None else -1.0, row.name))


def run_row(run: RunDirectory, *, now_s: float | None = None) -> RunRow:
    """One run's row.

    Raises:
        IntegrityError: its summary or a metric part is damaged.
    """
    now = time.time() if now_s is None else now_s
    summary = run.summary()
    newest = latest_values(run.storage.child("metrics"), {"train/loss", "train/samples_per_s"})
    sign_s = max([summary.updated_s, *(row["time_s"] for row in newest.values())])
    return RunRow(
        name=run.name,
        uri=run.uri,
        status=status_of(summary, sign_s, now),
        workload=summary.workload,
        step=max([summary.step, *(row["step"] for row in newest.values() if row["segment"] >= summary.segment)]),
        total_steps=summary.total_steps,
        epoch=summary.epoch,
        goal=goal_metric(summary),
        best=summary.best,
        loss=_value(newest, "train/loss"),
        samples_per_s=_value(newest, "train/samples_per_s"),
        age_s=now - summary.started_s if summary.started_s else None,
        quiet_s=now - sign_s if sign_s else None,
        problem=summary.error or "",
    )


def status_of(summary: Summary, sign_s: float, now_s: float) -> Status:
    """What a run's status is worth: a `running` without a sign of life since long (`sign_s`: the last one) is `silent`."""
    if summary.status != "running":
        return summary.status
    if not sign_s:
        return "pending"
    return "silent" if now_s - sign_s > SILENT_AFTER_S else "running"


def goal_metric(summary: Summary) -> str:
    """The goal as it is named among the metrics, such as `val/top1`; empty where the summary names none."""
    return summary.goal if "/" in summary.goal or not summary.goal else f"val/{summary.goal}"


def describe_run(run: RunDirectory, *, now_s: float | None = None) -> RunDetail:
    """One run from all sides.

    Raises:
        IntegrityError: something stored is damaged; the message names it.
    """
    pictures = [f"{run.uri}/pictures/{name}" for name in run.storage.files("pictures") if name.endswith(".png")]
    return RunDetail(
        row=run_row(run, now_s=now_s),
        summary=run.summary(),
        recipe_sha256=run.recipe().sha256,
        latest=latest_rows(run.metrics()),
        checkpoints=[entry.name for entry in run.storage.list("checkpoints") if entry.is_dir],
        pictures=pictures,
        events=run.events().to_pylist(),
    )


def latest_rows(metrics: pa.Table) -> dict[str, dict[str, Any]]:
    """The newest row of each metric in a table of `series.METRICS` that is sorted as `read_series` sorts, by name."""
    last: dict[str, int] = {name: i for i, name in enumerate(metrics.column("name").to_pylist())}
    return {row["name"]: row for row in metrics.take(pa.array(sorted(last.values()), pa.int64())).to_pylist()}


def compare_runs(runs: Sequence[RunDirectory]) -> Comparison:
    """Several runs side by side.

    Raises:
        UserError: fewer than two.
    """
    if len(runs) < 2:
        raise UserError("compare: one run is nothing to compare", "Give two or more")
    rows = [run_row(run) for run in runs]
    summaries = [run.summary() for run in runs]
    finals = [_final_metrics(run, summary) for run, summary in zip(runs, summaries, strict=True)]
    directions = {name: s.goal_direction for s in summaries for name in (goal_metric(s), f"best {goal_metric(s)}")}
    names = sorted({name for final in finals for name in final}, key=lambda name: (not name.startswith("test/"), name))
    return Comparison(
        names=[run.name for run in runs],
        recipe=_recipe_rows([run.recipe() for run in runs]),
        progress=[
            ComparedRow("status", [row.status for row in rows]),
            ComparedRow("steps", [row.step for row in rows]),
            ComparedRow("epochs", [round(row.epoch, 2) for row in rows]),
            ComparedRow("best step", [summary.best_step for summary in summaries]),
        ],
        metrics=[_ranked(name, [final.get(name) for final in finals], directions.get(name)) for name in names],
    )


def _readable_row(run: RunDirectory, now_s: float) -> RunRow:
    try:
        return run_row(run, now_s=now_s)
    except (LonghaulError, OSError) as error:
        return RunRow(name=run.name, uri=run.uri, status="damaged", problem=str(error))


def _value(rows: dict[str, dict[str, Any]], name: str) -> float | None:
    return rows[name]["value"] if name in rows else None


def _final_metrics(run: RunDirectory, summary: Summary) -> dict[str, float]:
    """Results on the test split, the last validation, the goal's best value, and the median throughput."""
    metrics = run.metrics()
    final = {name: row["value"] for name, row in latest_rows(metrics).items() if not name.startswith("train/")}
    rates = metrics.filter(pc.equal(metrics.column("name"), "train/samples_per_s")).column("value")
    if len(rates):
        final["train/samples_per_s"] = float(pc.quantile(rates, 0.5)[0].as_py())
    if summary.best is not None:
        final[f"best {goal_metric(summary)}"] = summary.best
    return final | summary.results


def _ranked(label: str, values: list[float | None], direction: Literal["max", "min"] | None) -> ComparedRow:
    """The row with its best values marked; none where all are equal, or where it is unknown which way is better."""
    if direction is None:
        direction = "max" if label.endswith(_UP) else "min" if label.endswith(_DOWN) else None
    there = [value for value in values if value is not None and value == value]
    if direction is None or len(set(there)) < 2:
        return ComparedRow(label, list(values))
    top = max(there) if direction == "max" else min(there)
    return ComparedRow(label, list(values), frozenset(i for i, value in enumerate(values) if value == top))


def _recipe_rows(recipes: list[Recipe]) -> list[ComparedRow]:
    """The fields in which any recipe differs from the first, with every recipe's value."""
    changes = [{change.field: change for change in diff(recipes[0], other)} for other in recipes[1:]]
    fields = list(dict.fromkeys(name for change in changes for name in change))
    firsts = {name: change[name].before for change in changes for name in change}
    rows = []
    for name in fields:
        others = [change[name].after if name in change else firsts[name] for change in changes]
        rows.append(ComparedRow(name, [firsts[name], *others]))
    return rows
