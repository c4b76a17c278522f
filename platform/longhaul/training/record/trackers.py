"""Experiment trackers that get a copy of the metrics: wandb, MLflow, TensorBoard.

The run directory has it all; a tracker is a convenience and must never cost a training anything. Each has a thread of its own
that opens it and hands it the rows, so that a server that is slow or away delays no step: rows wait (the newest 2,000 of them),
one warning is logged, and delivery is tried again later.

Steps only go forward within a segment. A step lower than the last one (the run went back to a checkpoint) begins a new segment:

- TensorBoard gets a new event file that purges what had been logged from that step on: charts show the new values alone.
- wandb draws every chart over the logged value `step`, not over its own counter, so a run may go back; the value `segment`
  tells the passes apart.
- MLflow keeps both values of a step, by time; the metric `segment` and the tag `longhaul.segment` tell which is which.

A resumed run continues the same tracker run: `Trackers.run_ids` is saved in the checkpoint and given to `make_trackers`.
"""

from __future__ import annotations

import netrc
import os
import time
import urllib.parse
import uuid
from typing import Any

from longhaul.recipe import Recipe, dump
from longhaul.recipe.flatten import flat
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.record.tracker_feed import Feed, Row, Shelf, Status

_CLOSE_S = 60.0
_PARAMS_AT_ONCE, _PARAM_LENGTH = 100, 6000  # MLflow's limits (mlflow.utils.validation)
_MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class TensorBoardTracker:
    """Event files, by `torch.utils.tensorboard.SummaryWriter`; `run_id` is the folder's name."""

    run_id = "tensorboard"

    def __init__(self, recipe: Recipe, shelf: Shelf) -> None:
        self._recipe = recipe
        self._shelf = shelf
        self._segment: int | None = None
        self._writer: Any = None

    def log(self, row: Row) -> None:
        """Write the row; at the first row of a segment, purge what stood from its step on."""
        from torch.utils.tensorboard import SummaryWriter

        if self._segment != row.segment:
            if self._writer is not None:
                self._writer.close()
            self._writer = SummaryWriter(str(self._shelf.folder), purge_step=row.step)
            self._writer.add_text("recipe", f"sha256 {self._recipe.sha256}\n\n```yaml\n{dump(self._recipe)}```", row.step)
            self._segment = row.segment
        for name, value in {**row.metrics, "epoch": row.epoch}.items():
            self._writer.add_scalar(name, value, row.step, walltime=row.time_s)
        self._writer.flush()

    def close(self, status: Status) -> None:
        """Put out what is buffered."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A wandb run: online with a key (`WANDB_API_KEY` or `wandb login`), offline without; never asks for one.

    `WANDB_MODE` decides where it is set, except that `online` without a key is offline.
    """

    def __init__(self, recipe: Recipe, shelf: Shelf, run_id: str) -> None:
        import wandb

        self.run_id = run_id
        offline = (os.environ.get("WANDB_MODE") or "online") == "online" and not _wandb_key()
        self._run = wandb.init(
            project=recipe.tracking.project,
            name=shelf.run.name,
            id=run_id,
            resume="allow",
            dir=shelf.folder,
            config={"recipe": recipe.name, "recipe_sha256": recipe.sha256, **flat(recipe.model_dump(mode="json"))},
            mode="offline" if offline else None,
            reinit="create_new",
            # The worker's own signals and output stay as they are. Offline, the search for a cloud's metadata server is off.
            settings=wandb.Settings(console="off", silent=True, x_disable_machine_info=offline, x_disable_stats=offline),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, row: Row) -> None:
        """Log the row with its step, epoch and segment as values."""
        self._run.log({**row.metrics, "step": row.step, "epoch": row.epoch, "segment": row.segment})

    def close(self, status: Status) -> None:
        """Finish the run; `failed` shows as crashed."""
        self._run.finish(exit_code=int(status == "failed"))


class MlflowTracker:
    """An MLflow run on the server of `MLFLOW_TRACKING_URI`, or in an SQLite store inside the run directory.

    The file store is out: MLflow 3 refuses it ("maintenance mode"). `run_id` is the value of the tag `longhaul.id` (a server
    chooses MLflow's own id, and only once it is reached); see a local store with `mlflow ui --backend-store-uri sqlite:///FILE`.
    """

    def __init__(self, recipe: Recipe, shelf: Shelf, run_id: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        self.run_id = run_id
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{shelf.folder}/mlflow.db"
        self._client = MlflowClient(tracking_uri=uri)
        where = None if os.environ.get("MLFLOW_TRACKING_URI") else f"{shelf.run.uri}/trackers/mlflow/artifacts"
        known = self._client.get_experiment_by_name(recipe.tracking.project)
        experiment = known.experiment_id if known else self._client.create_experiment(recipe.tracking.project, where)
        found = self._client.search_runs([experiment], f"tags.`longhaul.id` = '{run_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {"longhaul.id": run_id, "longhaul.run": shelf.run.uri}
            self._id = self._client.create_run(experiment, tags=tags, run_name=shelf.run.name).info.run_id
            fields = {"recipe": recipe.name, "recipe_sha256": recipe.sha256, **flat(recipe.model_dump(mode="json"))}
            params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in fields.items()]
            for start in range(0, len(params), _PARAMS_AT_ONCE):
                self._client.log_batch(self._id, params=params[start : start + _PARAMS_AT_ONCE])
        self._tag = RunTag
        self._segment: int | None = None

    def log(self, row: Row) -> None:
        """Log the row at its own time, which may be a while ago."""
        from mlflow.entities import Metric

        stamp = int(row.time_s * 1000)
        values = {**row.metrics, "epoch": row.epoch, "segment": float(row.segment)}
        tags = [self._tag("longhaul.segment", str(row.segment))] if row.segment != self._segment else []
        metrics = [Metric(name, value, stamp, row.step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics, tags=tags)
        self._segment = row.segment

    def close(self, status: Status) -> None:
        """End the run with its status."""
        self._client.set_terminated(self._id, _MLFLOW_STATUS[status])


class Trackers:
    """All trackers of a run; every method returns at once but `close`.

    Attributes:
        run_ids: what `make_trackers` takes to continue the same runs, by tracker.

    Args:
        feeds: one for each tracker.
        run_ids: see above.
        segment: the number of the first segment.
    """

    def __init__(self, feeds: list[Feed], run_ids: dict[str, str], segment: int = 0) -> None:
        self.run_ids = run_ids
        self._feeds = feeds
        self._segment = segment
        self._step = -1

    def log(self, metrics: dict[str, float], step: int, epoch: float) -> None:
        """Hand metrics to every tracker; a step lower than the last one begins a new segment."""
        if step < self._step:
            self._segment += 1
        self._step = step
        for feed in self._feeds:
            feed.put(Row(dict(metrics), step, epoch, self._segment, time.time()))

    def close(self, status: Status) -> None:
        """End the runs at the trackers, delivering what waits; takes at most a minute."""
        for feed in self._feeds:
            feed.finish(status)
        deadline = time.monotonic() + _CLOSE_S
        for feed in self._feeds:
            feed.join(deadline - time.monotonic())


def make_trackers(recipe: Recipe, run: RunDirectory, run_ids: dict[str, str]) -> Trackers:
    """Start the trackers that the recipe chooses, on one rank.

    Args:
        recipe: its `tracking` section decides; name, hash and all fields are logged as parameters.
        run: where trackers without a server write (`trackers/`).
        run_ids: of the checkpoint that is resumed from; empty at a fresh start.
    """
    feeds, ids = [], dict(run_ids)
    for name in dict.fromkeys(recipe.tracking.trackers):
        ids.setdefault(name, "tensorboard" if name == "tensorboard" else uuid.uuid4().hex[:12])
        feeds.append(_start(name, recipe, run, ids[name]))
    return Trackers(feeds, ids, segment=run.summary().segment + 1)


def _start(name: str, recipe: Recipe, run: RunDirectory, run_id: str) -> Feed:
    shelf = Shelf.open(run, name, fetch=name == "mlflow")
    if name == "tensorboard":
        return Feed(name, lambda: TensorBoardTracker(recipe, shelf), shelf)
    if name == "wandb":
        if not _wandb_key():
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        return Feed(name, lambda: WandbTracker(recipe, shelf, run_id), shelf)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    return Feed(name, lambda: MlflowTracker(recipe, shelf, run_id), shelf)


def _wandb_key() -> bool:
    """Whether wandb would find a key without asking: in the environment, or where `wandb login` left it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
