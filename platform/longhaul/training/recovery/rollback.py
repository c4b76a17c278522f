"""Back to before a spike, and what is done so that it does not come again.

    1. the newest checkpoint from before the spike is loaded; those after it are abandoned for good
    2. training replays up to the step of the spike; there, every sample of its batch is tried on its own
    3. the offending samples are left out from then on: positions stay, every other sample keeps its turn
    4. where none is found and it comes again: the whole batch is left out; then the gradient's norm, then the learning
       rate are lowered (`resilience.divergence.Remedies` holds this ladder); then the run ends with the reason

All of it is decided from what all ranks know alike.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from longhaul.data.loader import StepBatch
from longhaul.errors import LonghaulError
from longhaul.resilience.divergence import Spike, Suspect
from longhaul.resilience.incidents import record_incident
from longhaul.training.checkpoints.resuming import Resumer
from longhaul.training.checkpoints.saving import Saver
from longhaul.training.engine.engine import Engine
from longhaul.training.progress import Progress
from longhaul.training.record.logbook import Logbook
from longhaul.training.record.record import Recorder
from longhaul.training.recovery.quarantine import add_to_report
from longhaul.training.recovery.suspects import find
from longhaul.workloads import Workload

log = logging.getLogger(__name__)


class DivergedError(LonghaulError):
    """The loss is not finite or leaps, and no remedy has helped."""


@dataclass
class Rollback:
    """Answers spikes, on every rank in step."""

    workload: Workload
    engine: Engine
    resumer: Resumer
    saver: Saver
    record: Recorder
    book: Logbook

    def apply(self, progress: Progress) -> None:
        """Put into force what former spikes have lowered."""
        if progress.remedies.clip_norm is not None:
            self.engine.set_clip_norm(progress.remedies.clip_norm)

    def roll_back(self, progress: Progress, spike: Spike) -> Progress:
        """Go back to before `spike`; returns where the run stands then.

        Raises:
            DivergedError: nothing is left to try.
        """
        recipe, ranks = self.resumer.recipe, self.resumer.ranks
        decision = progress.remedies.decide(spike, clip_norm=recipe.training.clip_norm, limit=recipe.resilience.max_rollbacks)
        if decision.give_up:
            raise DivergedError(decision.reason)
        with self.book.during("startup"):
            settled = self.saver.wait()  # it may be from before the spike, and good; one from after it is abandoned below
            self.record.settled(progress, [save for save in settled if save.standing[0] == "written" and save.step < spike.step])
            back = self.resumer.rewind(before=spike.step).under(progress)
        for name in ("excluded", "remedies", "cadence", "tracker_runs"):
            setattr(back, name, getattr(progress, name))
        back.segment = progress.segment + 1
        attempt = ranks.from_first(uuid.uuid4().hex[:8])
        self.book.at("startup")
        self.saver.attempt = attempt
        self.book.rolled_back(back.segment, attempt, back.step)
        self.record.forget()
        if ranks.is_first:
            self._write_page(progress, decision.reason)
        self.record.write_summary(back)
        text = f"{decision.reason}; back to step {back.step}"
        self.record.event("rollback", back, text, spike=spike.model_dump(mode="json"), decision=decision.model_dump(mode="json"))
        self.apply(back)
        return back

    def _write_page(self, progress: Progress, reason: str) -> None:
        try:
            run = self.resumer.run
            record_incident(run, "rollback", reason, segment=progress.segment, first=None, retried=True, step=progress.step)
        except OSError:
            log.exception("the rollback's page could not be written")

    def leave_out(self, progress: Progress, batch: StepBatch) -> bool:
        """Before a step: if it is one that a spike made suspicious, find its offending samples and exclude them.

        Returns:
            Whether any was excluded; the batch must then be read anew.
        """
        step, remedies = progress.step + 1, progress.remedies
        decision, spike = remedies.decision, remedies.spike
        if decision is None or spike is None or not remedies.probes(step):
            return False
        ranks, samples = self.resumer.ranks, self.workload.splits.train
        with self.book.during("startup"):
            if decision.exclude_batch:
                ours = [int(i) for micro in batch.micro_batches for i in micro["index"]]
                batch_of_all = sorted({i for share in ranks.gather(ours) for i in share})
                found = [Suspect(index=i, loss=None, reason="its whole batch is left out") for i in batch_of_all]
            else:
                found = find(self.workload, self.engine, batch.micro_batches, ranks, spike.kind, self.book.beat)
            if not found:
                return False
            if not decision.exclude_batch:
                remedies.found()
            indices = [one.index for one in found]
            progress.excluded = sorted({*progress.excluded, *indices})
            ids = [samples.ids[i] for i in indices]
            text = f"{len(ids)} of the samples of step {step} are left out from now on: {', '.join(ids[:8])}"
            detail = {"samples": ids, "indices": indices, "spike": spike.model_dump(mode="json")}
            self.record.event("quarantine", progress, text, **detail)
            if ranks.is_first:
                add_to_report(self.resumer.run, samples, found, str(spike), step, progress.segment)
        return True
