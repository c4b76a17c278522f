"""A run in phases: one after another, each trained as a run of its own would be; a gate at the end of each.

A phase is over when its training is; what it hands on (weights, position, samples left out) lies in its last checkpoint. So
a restart begins with the newest phase that has one, and a phase that had ended just then ends again at once.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longhaul.errors import LonghaulError
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.recipe.schema import PhaseSection
from longhaul.resilience.checkpoint import CheckpointStore, load_weights
from longhaul.resilience.ledger import mark
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.loop import Trainer
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks
from longhaul.training.stage import Former, Stage

log = logging.getLogger(__name__)


class GateError(LonghaulError):
    """A phase has not reached what its gate asks; the next one does not begin."""


@dataclass(frozen=True)
class Phases:
    """The phases of `recipe`, on this rank.

    Attributes:
        recipe: the run's.
        run: its directory.
        ranks: who trains together.
        trainer: builds the trainer of one phase from its own recipe.
    """

    recipe: Recipe
    run: RunDirectory
    ranks: Ranks
    trainer: Callable[[Recipe, Stage], Trainer]

    def train(self) -> Summary:
        """Train from wherever the run stands to the end of the last phase, or to a request to stop.

        Raises:
            GateError: a phase was not good enough.
            UserError: the weights of a phase do not fit the next, and all that `Trainer.train` raises.
        """
        recipes, store = resolve(self.recipe), CheckpointStore(self.run)
        entries = self.ranks.from_first(store.entries() if self.ranks.is_first else [])
        number = max((entry.phase for entry in entries), default=0)
        former = None
        while True:
            last = number == len(recipes) - 1
            trainer = self.trainer(recipes[number], Stage(number, last, former))
            summary = trainer.train()
            if not self.recipe.phases or summary.status in ("paused", "cancelled"):
                return summary
            ended = self.ranks.from_first(self._last_progress(number, summary) if self.ranks.is_first else None)
            assert ended is not None
            self._check_gate(self.recipe.phases[number], ended)
            if last:
                return summary
            if self.ranks.is_first:  # until the next phase's first span: else the ledger would take it for a hang
                mark(self.run, "startup", segment=summary.segment, step=summary.step)
            number += 1
            former = self._former(trainer, ended, summary.epoch, self.recipe.phases[number])

    def _last_progress(self, number: int, summary: Summary) -> Progress:
        store = CheckpointStore(self.run)
        entry = [entry for entry in store.entries() if entry.phase == number][-1]
        if entry.step != summary.step:  # nothing is lost: a restart trains on from it
            raise OSError(f"the last checkpoint of phase {number}, at step {summary.step}, could not be saved")
        with tempfile.TemporaryDirectory(prefix="longhaul-phase-") as scratch:
            folder = store.fetch(entry.name, Path(scratch), only="progress.json")
            return Progress.model_validate_json((folder / "progress.json").read_bytes())

    def _check_gate(self, phase: PhaseSection, ended: Progress) -> None:
        gate = phase.gate
        if gate is None:
            return
        lowest, highest = ended.extremes.get(gate.metric, (float("nan"), float("nan")))
        if gate.at_least is not None:
            value, bound, passed = highest, f"at least {gate.at_least:g}", highest >= gate.at_least
        else:
            value, bound, passed = lowest, f"at most {gate.at_most:g}", lowest <= (gate.at_most or 0.0)
        text = f"phase {phase.name!r}: the best {gate.metric} is {value:.4f}, its gate asks for {bound}"
        if self.ranks.is_first:
            where = {"segment": self.run.summary().segment, "step": ended.step}
            self.run.add_event("gate_passed" if passed else "gate_failed", text, **where, value=value, phase=phase.name)
        if not passed:
            raise GateError(text)

    def _former(self, trainer: Trainer, ended: Progress, epochs: float, phase: PhaseSection) -> Former:
        ids = trainer.workload.splits.train.ids
        excluded = {*ended.left_out, *(ids[index] for index in ended.excluded)}
        weights = load_weights(self.run, phase.carry)
        log.info("phase %s begins at step %d with the weights of %s", phase.name, ended.step, weights.checkpoint)
        return Former(ended, epochs, sorted(excluded), weights)
