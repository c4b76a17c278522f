"""What a run writes about itself while it trains: metrics, summary, events, trackers (rank 0)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from longhaul.errors import LonghaulError
from longhaul.resilience.run_directory import RunDirectory, Summary, event_row
from longhaul.training.engine import StepResult
from longhaul.training.evaluation import Evaluation
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks
from longhaul.training.trackers import Trackers

_SUMMARY_S = 5.0


class DivergedError(LonghaulError):
    """The loss is NaN or infinite."""


class Recorder:
    """Collects losses between two log points and writes everything out on rank 0.

    Args:
        run: where to.
        ranks: whose losses are averaged.
        summary: the run's summary as it stands.
        size: samples an epoch.
        trackers: experiment trackers, on rank 0.
    """

    def __init__(self, run: RunDirectory, ranks: Ranks, summary: Summary, size: int, trackers: Trackers | None) -> None:
        self._run, self._ranks, self._size, self._trackers = run, ranks, size, trackers
        self.summary = summary
        self._writer = run.metric_writer()
        self._events = run.event_writer()
        self._losses: list[Tensor] = []
        self._norm: Tensor | None = None
        self._window_s = time.monotonic()
        self._window_samples: int | None = None
        self._summary_s = 0.0

    def step(self, result: StepResult) -> None:
        """Take one step's loss; nothing is read back from the device."""
        self._losses.append(result.loss)
        self._norm = result.grad_norm

    def training(self, progress: Progress, rate: float) -> None:
        """A log point: write the mean loss of all ranks since the last one, rate, gradient norm and throughput.

        Raises:
            DivergedError: a loss in the window is not finite, on any rank.
        """
        losses = self._ranks.mean(torch.stack(self._losses))
        self._losses = []
        loss = float(losses.mean())
        if not torch.isfinite(losses).all():
            raise DivergedError(
                f"step {progress.step}: the training loss is {loss}; lower training.optimizer.lr or set training.clip_norm"
            )
        values = {"train/loss": loss, "train/lr": rate}
        if self._norm is not None:
            values["train/grad_norm"] = float(self._norm)
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
        """Write a split's metrics as `<split>/<name>`; the confusion matrix of the test split goes to the events."""
        values = {f"{split}/{name}": value for name, value in result.scalars.items()}
        self.metrics(progress, values)
        if split == "test" and result.confusion is not None:
            self.event(
                "confusion",
                progress,
                f"confusion matrix on {split}",
                split=split,
                classes=result.classes,
                matrix=result.confusion,
            )
        if split == "val":
            self.event("validated", progress, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return values

    def checkpoint(self, progress: Progress, name: str, goal: float | None) -> None:
        """Record a complete checkpoint, and whether it is the best so far."""
        self.event("checkpoint", progress, f"saved {name}", checkpoint=name, goal=goal)
        best, sign = self.summary.best, 1 if self.summary.goal_direction == "max" else -1
        is_best = goal is not None and (best is None or sign * goal > sign * best)
        self.write_summary(progress, **({"best": goal, "best_step": progress.step, "best_checkpoint": name} if is_best else {}))

    def metrics(self, progress: Progress, values: dict[str, float]) -> None:
        """Write values at the step of `progress`."""
        if not self._ranks.is_first:
            return
        epoch, now = progress.cursor / self._size, time.time()
        for name, value in values.items():
            self._writer.append(
                segment=progress.segment,
                step=progress.step,
                epoch=epoch,
                samples=progress.cursor,
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

    def write_summary(self, progress: Progress, **changes: object) -> None:
        """Bring `summary.json` up to date."""
        position = {
            "segment": progress.segment,
            "step": progress.step,
            "samples": progress.cursor,
            "epoch": progress.cursor / self._size,
        }
        self.summary = self.summary.model_copy(update={**position, **changes})
        if self._ranks.is_first:
            self._writer.flush()
            self._run.write_summary(self.summary)
            self._summary_s = time.monotonic()

    def finish(self, progress: Progress, results: dict[str, float], what: str) -> None:
        """The run is over: results into the summary."""
        self.event("finished", progress, f"{what}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()))
        self.write_summary(progress, status="finished", results=results)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Put out what is buffered and end the trackers' runs, also when training ends by an error."""
        if self._ranks.is_first:
            self._writer.close()
            self._events.close()
            if self._trackers is not None:
                self._trackers.close("finished" if kind is None else "failed")
