"""Resuming: from the newest checkpoint that verifies, or from one before a given step (a rollback)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints.randomness import restore_random_state, seed_everything
from longhaul.training.checkpoints.reshard import universal
from longhaul.training.checkpoints.saving import rank_file
from longhaul.training.engine.deepspeed_engine import DeepSpeedEngine
from longhaul.training.engine.engine import Engine
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks

log = logging.getLogger(__name__)


class _NotSoundError(Exception):
    """A checkpoint that had verified could not be read by some rank; raised on all."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Resumer:
    """Finds, verifies and loads checkpoints, on every rank in step.

    Attributes:
        run: the run.
        recipe: its recipe.
        ranks: who loads together.
        engine: what is loaded into.
        averaged: the moving average of the weights, where the run keeps one.
        fingerprint: the training data's.
        phase: whose checkpoints are looked at.
        beat: called while it goes, so that nobody takes a long download for a hang.
    """

    run: RunDirectory
    recipe: Recipe
    ranks: Ranks
    engine: Engine
    averaged: AveragedModel | None
    fingerprint: str
    beat: Callable[[], None] = lambda: None
    phase: int = 0

    @property
    def store(self) -> CheckpointStore:
        """Where the checkpoints are."""
        return CheckpointStore(self.run)

    def resume(self) -> Progress | None:
        """Load the newest checkpoint whose every file verifies; None where none was ever complete.

        Those passed over are recorded as events with the reason, and marked once a sound one is found.

        Raises:
            UserError: the checkpoint is of other data.
            IntegrityError: there are complete checkpoints and none verifies; nothing is deleted.
        """
        rejected: dict[str, list[str]] = {}
        for name in self.ranks.from_first(self.store.candidates(self.phase)):
            shares = self.ranks.gather(self.store.problems(name, share=(self.ranks.rank, self.ranks.world_size), beat=self.beat))
            self.beat()
            problems = sorted({problem for share in shares for problem in share})
            progress: Progress | None = None
            if not problems:
                try:
                    progress = self._load(name)
                except _NotSoundError as error:  # on all ranks: one could not read it after all
                    progress, problems = None, error.problems
            if progress is not None:
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

    def rewind(self, before: int) -> Progress:
        """Abandon every checkpoint of step `before` or later for good, and load the newest that is left.

        Raises:
            IntegrityError: none is left that verifies.
        """
        if self.ranks.is_first:
            for entry in self.store.entries():
                if entry.step >= before:
                    self.store.reject(entry.name, [f"abandoned: the run was rolled back to before step {before}"])
        self.ranks.gather(None)
        progress = self.resume()
        if progress is None:
            raise IntegrityError(f"run {self.run.uri}: has no checkpoint from before step {before} to roll back to")
        return progress

    def _load(self, name: str) -> Progress:
        with tempfile.TemporaryDirectory(prefix="longhaul-resume-") as scratch:
            folder = self._at_hand(name, Path(scratch))
            progress = Progress.model_validate_json((folder / "progress.json").read_bytes())
            if progress.fingerprint != self.fingerprint:
                problem = f"run {self.run.uri}: the training data are not those that it began with (names or sizes differ)"
                raise UserError(problem, "Restore them, or train a new run under another --name")
            saved_by = len(list(folder.glob("rank-*.pt")))
            if isinstance(self.engine, DeepSpeedEngine) and saved_by != self.ranks.world_size:
                with universal(self.run, name, self.ranks, self.beat) as whole:
                    self.engine.load_universal(whole, folder)
            else:
                self.engine.load(folder)
            if self.averaged is not None:
                self.averaged.load_state_dict(_read(folder / "ema.pt", self.ranks.device))
            if saved_by == self.ranks.world_size:
                own = _read(folder / rank_file(self.ranks.rank), torch.device("cpu"))
                restore_random_state(own["random"])
                self._restore_buffers(own["buffers"])
            else:  # other ranks than before: states of their own, still decided by recipe and step
                seed_everything(self.recipe.seed, self.ranks.rank, self.ranks.world_size, progress.step)
            self.ranks.gather(None)  # nobody goes on (and retires checkpoints) while another still reads
        log.info("resumed from %s at step %d", name, progress.step)
        return progress

    def _at_hand(self, name: str, scratch: Path) -> Path:
        """A local folder with the checkpoint's files; all ranks have one, or none goes on."""
        stored = self.store.folder(name)
        folder, problem = Path(stored.root), None
        if not stored.is_local:
            try:
                folder = self.store.fetch(name, scratch, beat=self.beat)
            except IntegrityError as error:
                problem = str(error)
        problems = [other for other in self.ranks.gather(problem) if other is not None]
        if problems:
            raise _NotSoundError(problems)
        return folder

    def _restore_buffers(self, own: dict[str, dict[str, torch.Tensor]]) -> None:
        """This rank's own running statistics, in place of the mean that the whole weights have."""
        modules = {"model": self.engine.module, "average": self.averaged}
        for which, saved in own.items():
            module = modules[which]
            if module is not None:
                with torch.no_grad():
                    for name, buffer in module.named_buffers():
                        buffer.copy_(saved[name])


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state
