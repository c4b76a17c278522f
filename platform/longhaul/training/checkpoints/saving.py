"""Saving off the critical path: training waits for a copy into the host's memory; writing and hashing run behind.

    save      all ranks copy their state (the stall), each starts a thread that writes, hashes and publishes its files
    settle    at a later poll, when every rank is done: the checkpoint counts, and Ray Train and the record hear of it

One save at a time is under way; the next waits for it, so host memory is bounded. Rank 0 looks for NaN in what it is about
to write: a checkpoint without the manifest of rank 0 is never complete, so such a one never counts.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from longhaul.resilience.checkpoint import CheckpointStore, Manifest, Retention, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints.host_copy import HostCopy
from longhaul.training.checkpoints.randomness import random_state
from longhaul.training.engine.engine import Engine
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)

_LAST_S, _LOOK_S, _LONG_S, _AGAIN_S = 60.0, 1.0, 3600.0, 30.0
_PAUSES_S = (1.0, 5.0, 10.0, 10.0)  # between the tries of a save that must be
_NO_SCORE = -1e30

Report = Callable[[str, dict[str, float]], None]
"""Called on every rank when a checkpoint is complete: its name, and the metrics of the moment."""

Standing = tuple[Literal["none", "writing", "written", "failed", "nonfinite"], str]
"""Where a rank's save stands, and why it failed."""


@dataclass
class Save:
    """One save under way on this rank.

    Attributes:
        stall_s: how long training waited for it.
        duration_s: how long this rank took to write its part.
        standing: brought up to date by the thread.
    """

    name: str
    step: int
    goal: float | None
    metrics: dict[str, float]
    stall_s: float = 0.0
    duration_s: float = 0.0
    standing: Standing = ("writing", "")
    started_s: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None


@dataclass
class Saver:
    """Saves one run, on every rank in step.

    Attributes:
        run: its directory.
        ranks: who saves together.
        engine: whose state is saved.
        averaged: the moving average of the weights, where the run keeps one.
        attempt: id of this line of history, the same on all ranks; another one after each start and each rollback.
        report: told of each complete checkpoint.
        retention: what older checkpoints stay.
        beat: called while it waits.
    """

    run: RunDirectory
    ranks: Ranks
    engine: Engine
    averaged: AveragedModel | None
    attempt: str
    report: Report
    retention: Retention
    beat: Callable[[], None] = lambda: None
    duration_s: float = 0.0
    """How long the last save took until its manifest was written."""
    under_way: Save | None = None
    """The one that is being written."""
    _again_s: float | None = None
    _written: str = ""
    _copy: HostCopy = field(default_factory=HostCopy)
    _average_copy: HostCopy = field(default_factory=HostCopy)
    _buffer_copy: HostCopy = field(default_factory=HostCopy)

    def save(
        self, progress: Progress, metrics: dict[str, float], *, goal: float | None, permanent: bool, wait: bool = False
    ) -> list[Save]:
        """Save everything; with `wait`, see it complete, trying again while the storage is away.

        Args:
            progress: the loop's own state.
            metrics: handed on to `report`.
            goal: the goal metric at this step, where it was just measured.
            permanent: keep it for good.
            wait: without it the save goes on behind, and a later call settles it.

        Returns:
            The saves that were settled by the way.

        Raises:
            OSError: with `wait`: it could not be written at all.
        """
        settled = self.wait() if wait else []
        if wait and self._written == checkpoint_name(progress.step, self.attempt, progress.phase):
            return settled  # it is there, under this name; written again without its goal, it would be none of the best any more
        settled += self._begin(progress, metrics, goal=goal, permanent=permanent)
        for pause_s in _PAUSES_S if wait else ():
            settled += self.wait()
            if settled[-1].standing[0] != "failed":
                return settled
            time.sleep(pause_s)
            self.beat()
            settled += self._begin(progress, metrics, goal=goal, permanent=permanent)
        if wait:
            settled += self.wait()
            if settled[-1].standing[0] == "failed":
                raise OSError(f"step {progress.step}: no checkpoint could be written ({settled[-1].standing[1]})")
        return settled

    def _begin(self, progress: Progress, metrics: dict[str, float], *, goal: float | None, permanent: bool) -> list[Save]:
        """Copy everything, start to write it; returns the save before, which is over by then."""
        since = time.monotonic()
        settled = self.wait()
        weights, average, own = self._weights()
        state = (self.engine.snapshot(), weights, average, {"random": random_state(), "buffers": own},
                 progress.model_dump_json(indent=1))  # fmt: skip
        name = checkpoint_name(progress.step, self.attempt, progress.phase)
        manifest = Manifest(
            step=progress.step, rank=self.ranks.rank, world_size=self.ranks.world_size, attempt=self.attempt,
            created_s=time.time(), permanent=permanent, phase=progress.phase, files={},
            goal=goal if goal is not None and math.isfinite(goal) else None,
        )  # fmt: skip
        save = Save(name, progress.step, goal, metrics)
        save.thread = threading.Thread(target=self._write, args=(save, state, manifest), name="longhaul-save", daemon=True)
        self.under_way = save
        save.thread.start()
        save.stall_s = time.monotonic() - since
        return settled

    def _weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Whole weights and moving average with the ranks' mean buffers (rank 0), and this rank's own buffers.

        The mean goes into the copies alone: a save that changed what trains would make the result depend on when it came.
        """
        modules = {"model": self.engine.module, **({} if self.averaged is None else {"average": self.averaged})}
        weights = self.engine.weights()
        average: dict[str, Tensor] = {}
        if self.averaged is not None and self.ranks.is_first:
            average = self._average_copy(dict(self.averaged.state_dict()))
        if self.ranks.world_size == 1:
            return weights, average, {}
        own = self._buffer_copy({which: dict(module.named_buffers()) for which, module in modules.items()})
        for which, copies in (("model", weights), ("average", average)):
            means = self.ranks.mean_buffers(modules[which]) if which in modules else {}
            for name, mean in means.items():
                if name in copies:
                    copies[name].copy_(mean)
        return weights, average, own

    @property
    def owes_one(self) -> bool:
        """Whether the last save failed, a while ago: it is time for another try."""
        return self._again_s is not None and time.monotonic() > self._again_s

    @property
    def standing(self) -> Standing:
        """Where this rank's save stands, for the others to know."""
        return self.under_way.standing if self.under_way else ("none", "")

    def wait(self) -> list[Save]:
        """Wait for the save under way on all ranks, if there is one; returns it.

        The ranks ask one another again and again instead of waiting in one collective: rank 0 has the most to write, and
        nobody shall take that for a hang.
        """
        while self.under_way is not None:
            settled = self.settle(self.ranks.gather(self.standing))
            if settled:
                return settled
            if time.monotonic() - self.under_way.started_s < max(_LONG_S, 10 * self.duration_s):
                self.beat()  # past that it is a hang, and the watchdog's
            if self.under_way.thread is not None:
                self.under_way.thread.join(_LOOK_S)
            if self.standing[0] != "writing":
                time.sleep(_LOOK_S / 10)  # this rank is done, another is not
        return []

    def settle(self, standings: Sequence[Standing]) -> list[Save]:
        """Given where every rank's save stands: once none is writing, the save is over, well or not; returns it."""
        save = self.under_way
        if save is None or any(standing == "writing" for standing, _ in standings):
            return []
        self.under_way = None
        bad = [standing for standing in standings if standing[0] in ("nonfinite", "failed")]
        if bad:
            save.standing = max(bad)  # "nonfinite" before "failed"
            self._again_s = time.monotonic() + _AGAIN_S
            log.error("checkpoint %s was not saved: %s", save.name, save.standing[1])
        else:
            self._again_s, self._written = None, save.name
            self.report(save.name, {**save.metrics, "score": score(save.goal, self.retention.direction)})
        return [save]

    def close(self) -> None:
        """Let the save under way end, however training ended; no collective, the others may be gone."""
        if self.under_way is not None and self.under_way.thread is not None:
            self.under_way.thread.join(_LAST_S)

    def retire(self) -> None:
        """Delete what need not stay."""
        if self.ranks.is_first:
            try:
                gone = CheckpointStore(self.run).retire(self.retention, self.attempt)
                log.debug("checkpoints %s were retired", ", ".join(gone))
            except OSError as error:  # they are looked through again after the next save
                log.warning("old checkpoints could not be deleted: %s", error)

    def _write(self, save: Save, state: tuple[Any, ...], manifest: Manifest) -> None:
        write_engine, weights, average, own, progress = state
        try:
            bad = [n for n, value in [*weights.items(), *average.items()] if not torch.isfinite(value).all()]
            if bad:
                save.standing = ("nonfinite", f"step {save.step}: weights are not finite ({', '.join(bad[:3])})")
                return
            with tempfile.TemporaryDirectory(prefix="longhaul-save-") as scratch:
                folder = Path(scratch)
                write_engine(folder)
                torch.save(own, folder / rank_file(self.ranks.rank))
                if self.ranks.is_first:
                    save_file(weights, folder / "model.safetensors")
                    if average:
                        save_file(averaged_weights(average), folder / "ema.safetensors")
                        torch.save(average, folder / "ema.pt")
                    (folder / "progress.json").write_text(progress)
                CheckpointStore(self.run).publish(save.name, folder, manifest)
            self.retire()  # of those before this one, which is complete only when the others' manifests are there as well
            save.duration_s = self.duration_s = time.monotonic() - save.started_s
            save.standing = ("written", "")
        except Exception as error:  # whatever it was: the thread that trains must hear of it, and go on
            log.exception("rank %d could not write checkpoint %s", self.ranks.rank, save.name)
            save.standing = ("failed", f"{type(error).__name__}: {error}")


def rank_file(rank: int) -> str:
    """Where a rank's own state lies in a checkpoint: random states, and its buffers where ranks have their own."""
    return f"rank-{rank:05d}.pt"


def averaged_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's own names and values out of `AveragedModel.state_dict()`."""
    return {name.removeprefix("module."): value for name, value in state.items() if name.startswith("module.")}


def score(goal: float | None, direction: Literal["max", "min"]) -> float:
    """One number that is always there and always better when higher: Ray ranks a missing one best in the order `min`."""
    if goal is None or not math.isfinite(goal):
        return _NO_SCORE
    return goal if direction == "max" else -goal
