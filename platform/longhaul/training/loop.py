"""The training loop: the one file to read to know how a run goes.

    build      model, engine, order of samples, schedule, from the recipe
    resume     from the newest checkpoint that verifies, at its exact position in the data
    repeat     one global batch -> one optimizer step; log; validate; save
    finish     measure the best checkpoint on the test split

It knows how to train and nothing about the problem (`workloads`), how a step is computed (`engine`), where the processes
run (`ray_worker`) or where files lie (`storage`). All ranks run it in step; whatever decides the path is the same on all.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from longhaul.data.loader import BatchPlan, training_steps
from longhaul.data.order import SampleOrder
from longhaul.errors import UserError
from longhaul.recipe import Duration, Recipe
from longhaul.recipe.schedules import PlateauSchedule
from longhaul.resilience.checkpoint import CheckpointStore, Retention, best_entries, load_weights
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.checkpointing import Checkpointing, Report
from longhaul.training.engine import build_engine
from longhaul.training.evaluation import Evaluator
from longhaul.training.patience import Patience, check_watched
from longhaul.training.progress import Progress
from longhaul.training.randomness import seed_everything
from longhaul.training.ranks import Ranks
from longhaul.training.record import Recorder
from longhaul.training.schedule import build_schedule
from longhaul.training.trackers import make_trackers
from longhaul.workloads import Workload


@dataclass(frozen=True)
class Trainer:
    """One run on this rank.

    Attributes:
        recipe: what to do.
        workload: the problem, built from the recipe.
        run: where everything is written.
        ranks: this process among the workers.
        report: told, on every rank, of each complete checkpoint.
    """

    recipe: Recipe
    workload: Workload
    run: RunDirectory
    ranks: Ranks
    report: Report

    def train(self) -> Summary:
        """Train to the end of the recipe, from wherever the run stands; returns the run's summary.

        Raises:
            UserError: the recipe cannot be run by these workers, or its data are not in order.
            DivergedError: the loss is not finite.
            NonFiniteWeightsError: the weights are not finite.
        """
        recipe, ranks = self.recipe, self.ranks

        # ---- build -----------------------------------------------------------------------------------------------
        plan = self._plan()
        seed_everything(recipe.seed)  # the same initial weights on every rank
        engine = build_engine(recipe, self.workload.build_model(), plan, ranks)
        averaged = None
        if recipe.training.ema_decay is not None:
            averaged = AveragedModel(
                engine.module, multi_avg_fn=get_ema_multi_avg_fn(recipe.training.ema_decay), use_buffers=True
            )
        rate_at = self._schedule()
        evaluate = Evaluator(recipe, self.workload, ranks)

        # ---- resume ----------------------------------------------------------------------------------------------
        seed_everything(recipe.seed, ranks.rank)  # dropout differs by rank
        attempt = ranks.from_first(uuid.uuid4().hex[:8])
        checkpoints = Checkpointing(self.run, recipe, ranks, engine, averaged, attempt, self.fingerprint, self.report)
        resumed = checkpoints.resume()
        progress = resumed or self._fresh_progress()
        record = self._recorder(progress, "resumed" if resumed else "started", plan)
        order = SampleOrder(self.epoch_samples, self.fingerprint, recipe.seed, excluded=frozenset(progress.excluded))
        stream = training_steps(self.workload.splits.train, order, plan, progress.cursor, workers=recipe.data.loader_workers)

        with record:  # whatever happens, what was measured is written out
            # ---- repeat ------------------------------------------------------------------------------------------
            while not self.over(progress):
                batch = next(stream)
                rate = rate_at(progress.step) * progress.rate_factor
                result = engine.step(batch.micro_batches, self.workload.loss, rate)
                if averaged is not None:
                    averaged.update_parameters(engine.module)
                before, progress.cursor, progress.step = progress.cursor, batch.cursor, progress.step + 1
                record.step(result)

                if progress.step == 1 or self.due(recipe.tracking.log_every, before, progress):
                    record.training(progress, rate)

                metrics: dict[str, float] = {}
                if self.due(recipe.validation.every, before, progress):
                    with record.pause():
                        model = engine.module if averaged is None else averaged.module
                        ranks.average_buffers([model])
                        metrics = record.evaluation(progress, "val", evaluate(model, self.workload.splits.validation))
                        self._react(progress, metrics, record)

                goal = metrics.get(self.goal)
                permanent = recipe.checkpoints.keep_every is not None and self.due(
                    recipe.checkpoints.keep_every, before, progress, end=False
                )
                if permanent or self.due(recipe.checkpoints.every, before, progress) or self._is_among_best(goal):
                    with record.pause():
                        name = checkpoints.save(progress, metrics, goal=goal, permanent=permanent, retention=self._retention)
                        record.checkpoint(progress, name, goal)

            stream.close()  # ends the loader's processes

            # ---- finish ------------------------------------------------------------------------------------------
            best = load_weights(self.run, "best")
            model = self.workload.build_model(initial=False)
            model.load_state_dict(best.state)
            results = record.evaluation(progress, "test", evaluate(model.to(ranks.device), self.workload.splits.test))
            record.finish(progress, results, f"test of {best.checkpoint}")
            ranks.gather(None)  # rank 0 has written the summary: nobody leaves before
            return record.summary

    # ---- lengths: all in samples, pure functions of the position ---------------------------------------------------

    @cached_property
    def epoch_samples(self) -> int:
        """Samples an epoch."""
        return len(self.workload.splits.train)

    @cached_property
    def fingerprint(self) -> str:
        """The training data's fingerprint."""
        return self.workload.splits.train.fingerprint

    @cached_property
    def total_samples(self) -> int:
        """Length of the run."""
        return self._samples(self.recipe.training.length)

    def over(self, progress: Progress) -> bool:
        """Whether training is at its end."""
        return progress.stopped_early or progress.cursor >= self.total_samples

    def due(self, every: Duration, before: int, progress: Progress, *, end: bool = True) -> bool:
        """Whether a multiple of `every` lies in (before, cursor], or (with `end`) the run has just ended."""
        interval = max(self._samples(every), 1)
        return (end and self.over(progress)) or progress.cursor // interval > before // interval

    def _samples(self, duration: Duration) -> int:
        return duration.samples(global_batch=self.recipe.training.global_batch, epoch_samples=self.epoch_samples)

    def _steps(self, duration: Duration) -> int:
        return duration.steps(global_batch=self.recipe.training.global_batch, epoch_samples=self.epoch_samples)

    # ---- parts ---------------------------------------------------------------------------------------------------

    @property
    def goal(self) -> str:
        """The name of the metric that decides which checkpoint is best."""
        return f"val/{self.workload.goal.metric}"

    @property
    def _retention(self) -> Retention:
        keep = self.recipe.checkpoints
        return Retention(keep.keep_latest, keep.keep_best, self.workload.goal.direction)

    def _plan(self) -> BatchPlan:
        training = self.recipe.training
        try:
            return BatchPlan.derive(training.global_batch, training.micro_batch, self.ranks.rank, self.ranks.world_size)
        except ValueError as error:
            raise UserError(f"training.global_batch: {error}", "Change scaling.workers or the global batch") from None

    def _schedule(self) -> Callable[[int], float]:
        training = self.recipe.training
        return build_schedule(
            training.schedule,
            lr=training.optimizer.lr,
            total_steps=self._steps(training.length),
            steps_per_epoch=self.epoch_samples / training.global_batch,
            steps=self._steps,
        )

    def _fresh_progress(self) -> Progress:
        progress = Progress(fingerprint=self.fingerprint)
        schedule, early = self.recipe.training.schedule, self.recipe.training.early_stopping
        direction = self.workload.goal.direction
        if isinstance(schedule, PlateauSchedule):
            progress.plateau = Patience(patience=schedule.patience, direction=direction, min_delta=schedule.min_delta)
        check_watched(early, self.workload)
        if early is not None:
            progress.early = Patience(patience=early.patience, direction=early.direction or direction, min_delta=early.min_delta)
        return progress

    def _recorder(self, progress: Progress, kind: str, plan: BatchPlan) -> Recorder:
        old = self.ranks.from_first(self.run.summary())
        progress.segment = old.segment + 1
        trackers = make_trackers(self.recipe, self.run, progress.tracker_runs) if self.ranks.is_first else None
        progress.tracker_runs = dict(trackers.run_ids) if trackers else progress.tracker_runs
        changes = {
            "status": "running",
            "error": None,
            "workload": self.recipe.workload.kind,
            "goal": self.goal,
            "goal_direction": self.workload.goal.direction,
            "started_s": old.started_s or time.time(),
            "total_steps": self._steps(self.recipe.training.length),
            **self._best_so_far(),
        }
        record = Recorder(self.run, self.ranks, old.model_copy(update=changes), self.epoch_samples, trackers)
        record.write_summary(progress)
        where = f"step {progress.step} on {self.ranks.world_size} workers"
        record.event(kind, progress, f"{kind} at {where}", micro_batch=plan.micro_batch, accumulation=plan.accumulation)
        return record

    def _best_so_far(self) -> dict[str, object]:
        """What the store says: the last words of a killed attempt may be missing from its summary."""
        ranked = best_entries(CheckpointStore(self.run).entries(), self.workload.goal.direction) if self.ranks.is_first else []
        if not ranked:
            return {"best": None, "best_step": None, "best_checkpoint": None}
        return {"best": ranked[0].goal, "best_step": ranked[0].step, "best_checkpoint": ranked[0].name}

    def _react(self, progress: Progress, metrics: dict[str, float], record: Recorder) -> None:
        """What a validation changes: the plateau schedule's factor, the end by early stopping."""
        schedule, early = self.recipe.training.schedule, self.recipe.training.early_stopping
        if isinstance(schedule, PlateauSchedule) and progress.plateau and progress.plateau.update(metrics[self.goal]):
            progress.rate_factor *= schedule.gamma
            record.event(
                "plateau", progress, f"learning rate times {schedule.gamma:g}: no better {self.goal} for {schedule.patience}"
            )
        if early is None or progress.early is None or progress.cursor < self._samples(early.warmup):
            return
        watched = early.metric or self.goal
        if progress.early.update(metrics[watched]):
            progress.stopped_early = True
            record.event(
                "early_stop",
                progress,
                f"stopped: no better {watched} than {progress.early.best} for {early.patience} validations",
            )

    def _is_among_best(self, goal: float | None) -> bool:
        """Whether a goal just measured is worth a checkpoint at once, whatever the cadence."""
        if goal is None or self.recipe.checkpoints.keep_best == 0:
            return False
        worth = False
        if self.ranks.is_first:  # the others need not look at the storage as well
            best, k = (
                best_entries(CheckpointStore(self.run).entries(), self.workload.goal.direction),
                self.recipe.checkpoints.keep_best,
            )
            sign = 1 if self.workload.goal.direction == "max" else -1
            worth = len(best) < k or sign * goal > sign * (best[k - 1].goal or 0.0)
        return self.ranks.from_first(worth)
