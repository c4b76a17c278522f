"""The run directory: the whole truth about a run, on a local path or on S3.

    <storage>/<run name>/
        recipe.yaml       the resolved recipe
        recipes/          what it was before each change: 1.yaml, 2.yaml, ...
        summary.json      status, progress, best metric, results (`Summary`)
        metrics/          Parquet parts (`series.METRICS`)
        events/           Parquet parts (`series.EVENTS`)
        checkpoints/      one folder each (`checkpoint`)
        pictures/         PNG
        trackers/         what wandb, MLflow and TensorBoard write offline

Training, sweeps, console and reports meet only here. There is no database; any of it can be read with pyarrow alone. Ray
Train uses the same folder as its experiment directory.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.recipe import Difference, Recipe, diff, dump, parse
from longhaul.recipe.changes import changed, covers
from longhaul.resilience.series import EVENTS, METRICS, SeriesReader, SeriesWriter, read_series
from longhaul.storage import Storage

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class Summary(BaseModel):
    """`summary.json`: where a run stands.

    Attributes:
        status: `running` is also what a run shows whose processes died without a word; look at `updated_s`.
        workload: such as `classification`.
        goal: the metric that decides which checkpoint is best, with its direction.
        step, epoch, samples: progress; `total_steps` is the planned length, of a run in phases to the end of this one.
        best: the goal's best value, and the checkpoint and step where it was reached.
        results: final metrics on the test split, such as `test/top1`.
        error: why the run failed, in one line.
        flops_per_sample: operations of forward and backward for one sample, where they could be counted.
        device, workers: the kind of device that each worker has, such as `NVIDIA H200` or `cpu`, and how many there are.
    """

    # A diverged run's NaN must come back as a NaN; JSON has none, and pydantic's default (null) would not read back.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    status: Literal["running", "finished", "stopped", "paused", "cancelled", "failed"] = "running"
    workload: str = ""
    goal: str = ""
    goal_direction: Literal["max", "min"] = "max"
    started_s: float = 0.0
    updated_s: float = 0.0
    segment: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    samples: int = 0
    best: float | None = None
    best_step: int | None = None
    best_checkpoint: str | None = None
    results: dict[str, float] = {}
    error: str | None = None
    flops_per_sample: float | None = None
    device: str = ""
    workers: int = 0


@dataclass(frozen=True)
class RunDirectory:
    """One run's folder."""

    storage: Storage

    @classmethod
    def prepare(cls, root: str, name: str, recipe: Recipe, named: Sequence[str] = ()) -> RunDirectory:
        """The folder `<root>/<name>` for a run of `recipe`: a new one, or that run as it stands; nothing is written yet.

        Args:
            root: where runs lie.
            name: the run's.
            recipe: what it shall train.
            named: fields in which the recipe may be another than the one saved there (`recipe.changes`).

        Raises:
            UserError: the name cannot be a folder's, or a run of that name has checkpoints of another recipe.
        """
        run = cls(Storage.open(root).child(check_run_name(name)))
        changes = [change for change in run._changes(recipe) if not covers(named, change.field)]
        if changes:
            first = "; ".join(f"{c.field}: {c.before!r} -> {c.after!r}" for c in changes[:3])
            fix = "Give a new --name, train the saved recipe to resume it, or name what shall change: --change FIELD=VALUE"
            raise UserError(f"run {run.uri}: exists with another recipe ({first})", fix)
        return run

    @classmethod
    def create(cls, root: str, name: str, recipe: Recipe) -> RunDirectory:
        """`prepare`, and save the recipe there."""
        run = cls.prepare(root, name, recipe)
        run.save_recipe(recipe)
        return run

    def save_recipe(self, recipe: Recipe) -> None:
        """Write `recipe.yaml`, by which the folder becomes a run.

        Where the run has begun with another, that one stays as `recipes/<number>.yaml`, and an event says what has changed.
        """
        changes = self._changes(recipe)
        if changes:
            file = f"recipes/{len(self.storage.list('recipes')) + 1}.yaml"
            self.storage.write_bytes(file, self.storage.read_bytes("recipe.yaml"))
            told = [{"field": change.field, "before": change.before, "after": change.after} for change in changes]
            text = "; ".join(f"{change.field}: {change.before!r} -> {change.after!r}" for change in changes)
            summary = self.summary()
            self.add_event("changed", text, segment=summary.segment, step=summary.step, changes=told, former=file)
        self.storage.write_bytes("recipe.yaml", dump(recipe).encode())

    @property
    def has_begun(self) -> bool:
        """Whether checkpoints depend on its recipe."""
        return self.storage.exists("recipe.yaml") and bool(self.storage.list("checkpoints"))

    def _changes(self, recipe: Recipe) -> list[Difference]:
        """What differs from the recipe that the run has begun with."""
        return diff(self.recipe(), recipe) if self.has_begun else []

    @classmethod
    def open(cls, uri: str) -> RunDirectory:
        """Open an existing run.

        Raises:
            UserError: there is no run at `uri`.
        """
        run = cls(Storage.open(uri))
        if not run.storage.exists("recipe.yaml"):
            raise UserError(f"run {uri}: no run is there", "See `longhaul runs ls`")
        return run

    @classmethod
    def all(cls, root: str) -> list[RunDirectory]:
        """The runs below `root`, by name."""
        storage = Storage.open(root)
        folders = [storage.child(entry.name) for entry in storage.list() if entry.is_dir]
        return [cls(folder) for folder in folders if folder.exists("recipe.yaml")]

    @property
    def uri(self) -> str:
        """What `open` takes."""
        return self.storage.uri

    @property
    def name(self) -> str:
        """The run's name."""
        return self.storage.root.rsplit("/", 1)[-1]

    def recipe(self) -> Recipe:
        """The resolved recipe that was saved with the run."""
        return parse(self.storage.read_bytes("recipe.yaml").decode(), source=f"{self.uri}/recipe.yaml")

    def summary(self) -> Summary:
        """Where the run stands; the default `Summary` before its first step.

        Raises:
            IntegrityError: `summary.json` is damaged, or written by a newer version with fields that this one lacks.
        """
        try:
            return Summary.model_validate_json(self.storage.read_bytes("summary.json"))
        except FileNotFoundError:
            return Summary()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise IntegrityError(f"{self.uri}/summary.json: {where}: {first['msg']}; move it away") from None

    def write_summary(self, summary: Summary) -> None:
        """Replace `summary.json`, stamping the time."""
        stamped = summary.model_copy(update={"updated_s": time.time()})
        self.storage.write_bytes("summary.json", (stamped.model_dump_json(indent=1) + "\n").encode())

    def metrics(self) -> pa.Table:
        """All metrics (`series.METRICS`), by segment, step and time."""
        return read_series(self.storage.child("metrics"), METRICS)

    def events(self) -> pa.Table:
        """All events (`series.EVENTS`)."""
        return read_series(self.storage.child("events"), EVENTS)

    def metric_reader(self) -> SeriesReader:
        """For reading the metrics again and again while they grow."""
        return SeriesReader(self.storage.child("metrics"), METRICS)

    def metric_writer(self) -> SeriesWriter:
        """A writer of metrics; close it."""
        return SeriesWriter(self.storage.child("metrics"), METRICS)

    def event_writer(self) -> SeriesWriter:
        """A writer of events, for who has many; close it."""
        return SeriesWriter(self.storage.child("events"), EVENTS)

    def add_event(self, kind: str, message: str, *, segment: int = 0, step: int = 0, **detail: Any) -> None:
        """Record that something happened, at once."""
        with self.event_writer() as writer:
            writer.append(**event_row(kind, message, segment=segment, step=step, **detail))

    def write_picture(self, name: str, png: bytes) -> str:
        """Save a PNG as `pictures/<name>`; returns its address."""
        self.storage.write_bytes(f"pictures/{name}", png)
        return f"{self.uri}/pictures/{name}"


def event_row(kind: str, message: str, *, segment: int, step: int, **detail: Any) -> dict[str, Any]:
    """One row of `series.EVENTS`, of now."""
    text = json.dumps(detail, sort_keys=True)
    return {"segment": segment, "step": step, "time_s": time.time(), "kind": kind, "message": message, "detail": text}


def check_run_name(name: str) -> str:
    """The name, if it can be a run's.

    Raises:
        UserError: it cannot be a folder's name everywhere.
    """
    if _NAME.fullmatch(name) is None:
        raise UserError(f"run name {name!r}: not a plain name", "Use letters, digits, '.', '_' and '-', at most 80")
    return name


def new_run_name(recipe: str) -> str:
    """A name for a new run of a recipe: `digits-20261120-193000`, in local time."""
    return f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def newest_unfinished(root: str, recipe: str) -> str | None:
    """The name of the newest run below `root` that is of this recipe and has not finished; None where there is none."""
    unfinished = []
    for run in RunDirectory.all(root):
        try:
            summary = run.summary()
            if summary.status != "finished" and run.recipe().name == recipe:
                unfinished.append((summary.started_s, run.name))
        except LonghaulError as error:  # a damaged neighbour is no reason not to go on
            log.warning("run %s is passed over: %s", run.name, error)
    return max(unfinished)[1] if unfinished else None


def changed_recipe(root: str, name: str, changes: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe saved with run `name`, with `changes` such as `training.epochs=220`.

    Raises:
        UserError: there is no such run, the changes make no recipe, or its checkpoints forbid one of them.
    """
    if overrides:
        raise UserError(
            "--set and --change contradict each other: the recipe saved with the run is changed", "Give --change alone"
        )
    run = RunDirectory(Storage.open(root).child(check_run_name(name)))
    if not run.storage.exists("recipe.yaml"):
        raise UserError(
            f"run {run.uri}: no run is there to change", "Give its --name, see `longhaul runs ls`; a new run takes --set"
        )
    return changed(run.recipe(), changes, source=f"{run.uri}/recipe.yaml", begun=run.has_begun)
