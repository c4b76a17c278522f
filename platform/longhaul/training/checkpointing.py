"""Between the loop's state and the checkpoint store: what all ranks do together to save and to resume."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, Retention, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.engine import Engine
from longhaul.training.progress import Progress
from longhaul.training.randomness import random_state, restore_random_state, seed_everything
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)

Report = Callable[[str, dict[str, float]], None]
"""Called on every rank when a checkpoint is complete: its name, and the metrics of the moment."""


class NonFiniteWeightsError(LonghaulError):
    """The weights hold NaN or infinity; such a checkpoint is never published."""


@dataclass(frozen=True)
class Checkpointing:
    """Saves and resumes one run.

    Attributes:
        run: its directory.
        recipe: its recipe.
        ranks: who saves together.
        engine: whose state is saved.
        averaged: the moving average of the weights, where the run keeps one.
        attempt: id of this start of the workers, the same on all ranks.
        fingerprint: the training data's.
        report: told of each complete checkpoint.
    """

    run: RunDirectory
    recipe: Recipe
    ranks: Ranks
    engine: Engine
    averaged: AveragedModel | None
    attempt: str
    fingerprint: str
    report: Report

    @property
    def store(self) -> CheckpointStore:
        """Where the checkpoints are."""
        return CheckpointStore(self.run)

    def save(
        self, progress: Progress, metrics: dict[str, float], *, goal: float | None, permanent: bool, retention: Retention
    ) -> str:
        """Save everything; returns the checkpoint's name when it is complete on all ranks.

        Args:
            progress: the loop's own state.
            metrics: handed on to `report`.
            goal: the goal metric at this step, where it was just measured.
            permanent: keep it for good.
            retention: what older checkpoints stay.

        Raises:
            NonFiniteWeightsError: the weights hold NaN or infinity; nothing was written.
        """
        self.ranks.average_buffers(m for m in (self.engine.module, self.averaged) if m is not None)
        weights = self.engine.weights()
        average = _weights_of(self.averaged) if self.ranks.is_first else {}
        bad = self.ranks.from_first(
            [name for name, value in [*weights.items(), *average.items()] if not torch.isfinite(value).all()]
        )
        if bad:
            raise NonFiniteWeightsError(
                f"step {progress.step}: weights are not finite ({', '.join(bad[:3])}); no checkpoint was written"
            )
        name = checkpoint_name(progress.step, self.attempt)
        with tempfile.TemporaryDirectory(prefix="longhaul-save-") as scratch:
            folder = Path(scratch)
            self.engine.save(folder)
            torch.save(random_state(), folder / _random_file(self.ranks.rank))
            if self.ranks.is_first:
                save_file(weights, folder / "model.safetensors")
                if average:
                    save_file(average, folder / "ema.safetensors")
                (folder / "progress.json").write_text(progress.model_dump_json(indent=1))
                if self.averaged is not None:
                    torch.save(self.averaged.state_dict(), folder / "ema.pt")
            self.store.publish(name, folder, self._manifest(progress.step, goal, permanent))
        self.ranks.gather(None)  # all manifests are written: from here on the checkpoint counts
        if self.ranks.is_first:
            for gone in self.store.retire(retention, self.attempt):
                log.debug("checkpoint %s was retired", gone)
        self.report(name, metrics)
        return name

    def resume(self) -> Progress | None:
        """Load the newest checkpoint whose every file verifies; None where none was ever complete.

        Those passed over are recorded as events with the reason, and marked once a sound one is found.

        Raises:
            UserError: the checkpoint is of other data, or of another world size and the engine cannot reshard it.
            IntegrityError: there are complete checkpoints and none verifies; nothing is deleted.
        """
        rejected: dict[str, list[str]] = {}
        for name in self.ranks.from_first(self.store.candidates()):
            shares = self.ranks.gather(self.store.problems(name, share=(self.ranks.rank, self.ranks.world_size)))
            problems = sorted({problem for share in shares for problem in share})
            if not problems:
                progress = self._load(name)
                if self.ranks.is_first:
                    for bad, reasons in rejected.items():
                        self.store.reject(bad, reasons)
                return progress
            rejected[name] = problems
            if self.ranks.is_first:
                log.warning("checkpoint %s is not resumed from: %s", name, "; ".join(problems))
                segment = self.run.summary().segment + 1
                self.run.add_event("checkpoint_rejected", f"{name}: {problems[0]}", segment=segment, reasons=problems)
        damaged = self.ranks.from_first([name for name in rejected if self.store.is_complete(name)])
        if damaged:
            fix = "Restore one of them, or move its checkpoints/ away to start over"
            raise IntegrityError(f"run {self.run.uri}: none of its checkpoints verifies ({', '.join(damaged)}). {fix}")
        return None

    def _load(self, name: str) -> Progress:
        with tempfile.TemporaryDirectory(prefix="longhaul-resume-") as scratch:
            stored = self.store.folder(name)
            folder = Path(stored.root) if stored.is_local else self.store.fetch(name, Path(scratch))
            progress = Progress.model_validate_json((folder / "progress.json").read_bytes())
            if progress.fingerprint != self.fingerprint:
                problem = f"run {self.run.uri}: the training data are not those that it began with (names or sizes differ)"
                raise UserError(problem, "Restore them, or train a new run under another --name")
            saved_by = len(list(folder.glob("random-*.pt")))
            if saved_by != self.ranks.world_size and self.recipe.training.engine != "torch":
                raise UserError(
                    f"checkpoint {name}: ZeRO shards of {saved_by} workers cannot be loaded by {self.ranks.world_size}",
                    f"Give the cluster {saved_by} workers again; another number needs a new run",
                )
            self.engine.load(folder)
            if self.averaged is not None:
                self.averaged.load_state_dict(_read(folder / "ema.pt", self.ranks.device))
            own = folder / _random_file(self.ranks.rank)
            if saved_by == self.ranks.world_size:
                restore_random_state(_read(own, torch.device("cpu")))
            else:  # other ranks than before: states of their own, still decided by recipe and step
                seed_everything(self.recipe.seed, self.ranks.rank, self.ranks.world_size, progress.step)
            self.ranks.gather(None)  # nobody goes on (and retires checkpoints) while another still reads
        log.info("resumed from %s at step %d", name, progress.step)
        return progress

    def _manifest(self, step: int, goal: float | None, permanent: bool) -> Manifest:
        ranks = self.ranks
        return Manifest(
            step=step, rank=ranks.rank, world_size=ranks.world_size, attempt=self.attempt, created_s=time.time(),
            permanent=permanent, goal=goal, files={},
        )  # fmt: skip


def _random_file(rank: int) -> str:
    return f"random-{rank:05d}.pt"


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def _weights_of(averaged: AveragedModel | None) -> dict[str, Tensor]:
    if averaged is None:
        return {}
    return {name: value.detach().cpu().contiguous() for name, value in averaged.module.state_dict().items()}
