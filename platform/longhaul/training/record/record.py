"""What a run writes about itself while it trains: metrics, summary, events, trackers (rank 0)."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Literal, Protocol

import torch

from longhaul.data.loader import BatchPlan
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore, Entry, best_entries
from longhaul.resilience.divergence import Spike
from longhaul.resilience.run_directory import RunDirectory, Summary, event_row
from longhaul.training.checkpoints.saving import Save
from longhaul.training.course import Course
from longhaul.training.engine.engine import StepResult
from longhaul.training.evaluation import Evaluation
from longhaul.training.progress import Progress
from longhaul.training.pulse import News
from longhaul.training.ranks import Ranks
from longhaul.training.record.busy import Stragglers
from longhaul.training.record.tracker_feed import Status
from longhaul.training.record.trackers import Trackers, make_trackers
from longhaul.workloads import Workload

log = logging.getLogger(__name__)

_SUMMARY_S = 5.0
_TRACKED: dict[str, Status] = {
    "finished": "finished",
    "paused": "stopped",
    "cancelled": "stopped",
    "running": "stopped",
}  # between phases


class SpikeError(Exception):
    """The loss or the weights are not sound: to be answered by a rollback; raised on all ranks at the same step."""

    def __init__(self, spike: Spike) -> None:
        super().__init__(f"step {spike.step}: {spike.kind}")
        self.spike = spike


class Recorder:
    """Collects losses between two log points and writes everything out on rank 0.

    Args:
        run: where to.
        ranks: whose losses are averaged.
        summary: the run's summary as it stands.
        size: samples an epoch.
        trackers: experiment trackers, on rank 0.
        phase: of the run, whose checkpoints are compared with each other.
    """

    def __init__(
        self, run: RunDirectory, ranks: Ranks, summary: Summary, size: int, trackers: Trackers | None, phase: int = 0
    ) -> None:
        self._run, self._ranks, self._size, self._trackers, self._phase = run, ranks, size, trackers, phase
        self.summary = summary
        self._writer = run.metric_writer()
        self._events = run.event_writer()
        self._unseen: list[StepResult] = []
        self._losses: list[float] = []
        self._norm: float | None = None
        self._window_s = time.monotonic()
        self._window_samples: int | None = None
        self._summary_s = 0.0
        self._stragglers = Stragglers()

    def step(self, result: StepResult) -> None:
        """Take one step's loss; nothing is read back from the device."""
        self._unseen.append(result)

    def look(self, progress: Progress) -> None:
        """Read back the losses and gradient norms since the last look, and judge each.

        Raises:
            SpikeError: one is not finite, or leaps; those after it are forgotten.
        """
        results, self._unseen = self._unseen, []
        if not results:
            return
        losses = self._ranks.mean(torch.stack([result.loss for result in results])).tolist()
        norms = [None if result.grad_norm is None else float(result.grad_norm) for result in results]
        first = progress.step - len(results) + 1
        for step, loss, norm in zip(range(first, progress.step + 1), losses, norms, strict=True):
            spike = progress.monitor.update(step, loss, norm)
            if spike is not None:
                raise SpikeError(spike)
            self._losses.append(loss)
            self._norm = norm

    def forget(self) -> None:
        """Drop what belongs to steps that are rolled back."""
        self._unseen, self._losses, self._window_samples = [], [], None

    def training(self, progress: Progress, rate: float) -> None:
        """A log point, after a look: write the mean loss of all ranks since the last one, rate, gradient norm, throughput."""
        values = {"train/loss": sum(self._losses) / len(self._losses), "train/lr": rate}
        self._losses = []
        if self._norm is not None:
            values["train/grad_norm"] = self._norm
        now = time.monotonic()
        if self._window_samples is not None and now > self._window_s:
            values["train/samples_per_s"] = (progress.cursor - self._window_samples) / (now - self._window_s)
        self._window_s, self._window_samples = now, progress.cursor
        self.metrics(progress, values)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is not training (validation, saving): throughput counts training alone."""
        since = time.monotonic()
        yield
        self._window_s += time.monotonic() - since

    def evaluation(self, progress: Progress, split: str, result: Evaluation) -> dict[str, float]:
        """Write a split's metrics as `<split>/<name>`; matrices and curves of the test split go to the events."""
        values = {f"{split}/{name}": value for name, value in result.scalars.items()}
        self.metrics(progress, values)
        if split == "test" and result.confusion is not None:
            text, classes = f"confusion matrix on {split}", result.classes
            self.event("confusion", progress, text, split=split, classes=classes, matrix=result.confusion)
        if split == "test" and result.curves is not None:
            text, classes = f"precision and recall on {split}", result.classes
            self.event("pr_curves", progress, text, split=split, classes=classes, curves=result.curves)
        if split == "val":
            self.event("validated", progress, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return values

    def settled(self, progress: Progress, saves: list[Save]) -> None:
        """Record saves that are over: complete checkpoints, and whether one is the best so far; or why one failed.

        Raises:
            SpikeError: the weights of one were not finite.
        """
        for save in saves:
            standing, reason = save.standing
            at = progress.model_copy(update={"step": save.step})
            if standing == "nonfinite":
                self.event("save_failed", at, f"{save.name}: {reason}")
                raise SpikeError(Spike(step=save.step, loss=math.nan, kind="nonfinite"))
            if standing == "failed":
                self.event("save_failed", at, f"{save.name}: {reason}; training goes on from what is saved")
                continue
            progress.cadence.observe_save(save.stall_s, save.duration_s)
            detail = {"checkpoint": save.name, "goal": save.goal, "cadence": progress.cadence.decision()}
            detail |= {"stall_s": save.stall_s, "duration_s": save.duration_s}
            self.event("checkpoint", at, f"saved {save.name}", **detail)
            if self._is_better(save.goal, self.summary.best):
                self.write_summary(progress, best=save.goal, best_step=save.step, best_checkpoint=save.name)
            else:
                self.write_summary(progress)

    def heard(self, progress: Progress, news: News) -> None:
        """Record what a pulse brought: how busy each rank is, stragglers, a notice of preemption."""
        if any(news.busy_s):
            self.metrics(progress, {f"ranks/{rank}/busy_s": busy for rank, busy in enumerate(news.busy_s)})
        for rank in self._stragglers.look(news.busy_s):
            text = f"rank {rank} needs {news.busy_s[rank]:.3g} s a step of its own, far more than the others"
            self.event("straggler", progress, text, rank=rank, busy_s=news.busy_s)
        if news.urgent and news.notice is not None:
            self.event("preemption", progress, f"notice: {news.notice}; a checkpoint is saved at once")

    def is_among_best(self, goal: float | None, keep: int, under_way: Save | None) -> bool:
        """Whether a goal just measured is worth a checkpoint at once, whatever the cadence.

        Args:
            goal: the goal; None where none was measured.
            keep: how many of the best stay.
            under_way: the save that is being written and may not be on storage yet.
        """
        if goal is None or keep == 0:
            return False
        worth = False
        if self._ranks.is_first:  # the others need not look at the storage as well
            goals = {} if under_way is None else {under_way.name: under_way.goal}
            with contextlib.suppress(OSError):  # storage that is away: one save too many does no harm
                goals |= {entry.name: entry.goal for entry in _entries(self._run, self._phase)}
            worth = sum(other is not None and not self._is_better(goal, other) for other in goals.values()) < keep
        return self._ranks.from_first(worth)

    def _is_better(self, goal: float | None, than: float | None) -> bool:
        sign = 1 if self.summary.goal_direction == "max" else -1
        return goal is not None and (than is None or sign * goal > sign * than)

    def metrics(self, progress: Progress, values: dict[str, float]) -> None:
        """Write values at the step of `progress`."""
        if not self._ranks.is_first:
            return
        epoch, now = progress.epoch(self._size), time.time()
        for name, value in values.items():
            self._writer.append(
                segment=progress.segment,
                step=progress.step,
                epoch=epoch,
                samples=progress.samples,
                time_s=now,
                name=name,
                value=value,
            )
        if self._trackers is not None:
            self._trackers.log(values, progress.step, epoch)
        if time.monotonic() - self._summary_s > _SUMMARY_S:
            self.write_summary(progress)

    def event(self, kind: str, progress: Progress, message: str, **detail: object) -> None:
        """Record that something happened."""
        if self._ranks.is_first:
            self._events.append(**event_row(kind, message, segment=progress.segment, step=progress.step, **detail))
            self._events.flush()

    def flush(self) -> None:
        """Put out what is buffered."""
        if self._ranks.is_first:
            self._writer.flush()

    def write_summary(self, progress: Progress, **changes: object) -> None:
        """Bring `summary.json` up to date."""
        position = {
            "segment": progress.segment,
            "step": progress.step,
            "samples": progress.samples,
            "epoch": progress.epoch(self._size),
        }
        self.summary = self.summary.model_copy(update={**position, **changes})
        if self._ranks.is_first:
            self._writer.flush()
            self._summary_s = time.monotonic()
            try:
                self._run.write_summary(self.summary)
            except OSError as error:
                log.warning("the summary waits for the storage to come back: %s", error)

    def _last_word(self) -> None:
        """The summary once more, and this time it must be written: by it the run is over."""
        if self._ranks.is_first:
            self._run.write_summary(self.summary)

    def finish(self, progress: Progress, results: dict[str, float], what: str, pictures: dict[str, bytes]) -> None:
        """The run is over: results into the summary, pictures beside it."""
        for name, content in pictures.items() if self._ranks.is_first else ():
            self._run.write_picture(name, content)
        self.event("finished", progress, f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()))
        self.write_summary(progress, status="finished", results=results)
        self._last_word()

    def stop(self, progress: Progress, status: Literal["paused", "cancelled"]) -> None:
        """The run ends here, on request."""
        self.event(status, progress, f"{status} at step {progress.step}")
        self.write_summary(progress, status=status)
        self._last_word()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Put out what is buffered and end the trackers' runs, also when training ends by an error."""
        if self._ranks.is_first:
            self._writer.close()
            self._events.close()
            if self._trackers is not None:
                self._trackers.close("failed" if kind is not None else _TRACKED[self.summary.status])


def _entries(run: RunDirectory, phase: int) -> list[Entry]:
    return [entry for entry in CheckpointStore(run).entries() if entry.phase == phase]


class Beginner(Protocol):
    """What `begin_record` wants to know of the trainer."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def workload(self) -> Workload: ...
    @property
    def run(self) -> RunDirectory: ...
    @property
    def ranks(self) -> Ranks: ...


def begin_record(trainer: Beginner, progress: Progress, course: Course, plan: BatchPlan, *, resumed: bool) -> Recorder:
    """The record of a new segment: trackers, summary, and the event `started` or `resumed`."""
    run, ranks, goal = trainer.run, trainer.ranks, trainer.workload.goal
    old = ranks.from_first(run.summary())
    if resumed and old.status == "running":  # nobody has stopped it: its workers were lost
        progress.cadence.observe_loss()
    trackers = make_trackers(trainer.recipe, run, progress.tracker_runs) if ranks.is_first else None
    progress.tracker_runs = dict(trackers.run_ids) if trackers else progress.tracker_runs
    # What the store says: the last words of a killed attempt may be missing from its summary.
    ranked = best_entries(_entries(run, progress.phase), goal.direction) if ranks.is_first else []
    best = ranked[0] if ranked else None
    changes = {
        "status": "running",
        "error": None,
        "workload": trainer.recipe.workload.kind,
        "goal": f"val/{goal.metric}",
        "goal_direction": goal.direction,
        "started_s": old.started_s or time.time(),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type,
        "workers": ranks.world_size,
        "total_steps": progress.first_step + course.total_steps,
        "best": best.goal if best else None,
        "best_step": best.step if best else None,
        "best_checkpoint": best.name if best else None,
    }
    record = Recorder(run, ranks, old.model_copy(update=changes), course.epoch_samples, trackers, progress.phase)
    record.write_summary(progress)
    kind = "resumed" if resumed else "started"
    where = f"step {progress.step} on {ranks.world_size} workers"
    detail = {"micro_batch": plan.micro_batch, "accumulation": plan.accumulation, "workers": ranks.world_size}
    record.event(kind, progress, f"{kind} at {where}", **detail)
    return record
