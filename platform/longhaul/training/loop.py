"""The training loop: the one file to read to know how a run goes.

    build      model, engine, order of samples, schedule, from the recipe
    resume     from the newest checkpoint that verifies, at its exact position in the data
    repeat     one global batch -> one optimizer step; look at the loss; validate; save; hear what comes from outside
    finish     measure the best checkpoint on the test split

It knows how to train and nothing about the problem (`workloads`), how a step is computed (`engine`), where the processes
run (`ray_worker`) or where files lie (`storage`). All ranks run it in step; whatever decides the path is the same on all.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from longhaul.data.loader import BatchPlan, StepBatch, training_steps
from longhaul.data.order import SampleOrder
from longhaul.data.samples import SampleSet
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import CheckpointStore, Retention, load_weights
from longhaul.resilience.flight import this_host
from longhaul.resilience.notices import Notice
from longhaul.resilience.requests import Request, StopRequested
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.checkpoints.randomness import seed_everything
from longhaul.training.checkpoints.resuming import Resumer
from longhaul.training.checkpoints.saving import Report, Saver
from longhaul.training.course import Course
from longhaul.training.engine.engine import Engine, build_engine
from longhaul.training.evaluation import Evaluation, Evaluator
from longhaul.training.progress import Observe, Progress, unobserved
from longhaul.training.pulse import Pulse
from longhaul.training.ranks import Ranks
from longhaul.training.reaction import react
from longhaul.training.record.busy import Busy
from longhaul.training.record.logbook import Logbook
from longhaul.training.record.record import Recorder, SpikeError, begin_record
from longhaul.training.recovery.memory import memory_guard, plan_batches, preflight
from longhaul.training.recovery.rollback import Rollback
from longhaul.training.stage import WHOLE, Stage, with_weights
from longhaul.workloads import Workload

_HOLD_S, _TICKS = 20, 16  # after a save for a resize; evaluation passes between two looks for a request


@dataclass(frozen=True)
class Trainer:
    """One run on this rank: `recipe` and the `workload` built from it, written to `run`, by `ranks`.

    Attributes:
        report: told, on every rank, of each complete checkpoint.
        notice: asks whether a node is about to be taken away; a barrier of all ranks.
        stage: the phase of the run, whose own recipe `recipe` is.
        observe: told the goal after each validation, on every rank; may raise `StopRequested`.
    """

    recipe: Recipe
    workload: Workload
    run: RunDirectory
    ranks: Ranks
    report: Report
    notice: Callable[[], Notice | None] | None = None
    stage: Stage = WHOLE
    observe: Observe = unobserved

    def train(self) -> Summary:
        """Train to the end of the recipe, or to a request to stop, from wherever the run stands; returns the run's summary.

        Raises:
            UserError: the recipe cannot be run by these workers, or its data are not in order.
            MemoryExhaustedError: a batch does not fit; a restart takes a smaller one.
            DivergedError: the loss is not finite, or leaps, and no remedy has helped.
        """
        plan = plan_batches(self.run, self.recipe, self.ranks)
        with Logbook.open(self.run, self.ranks, self.recipe.resilience.hang_s) as book:
            attempt = self._prepare(plan, book)
            with attempt.record, contextlib.closing(attempt.saver):  # whatever happens, what is there is written out
                return attempt.run_on()

    def _prepare(self, plan: BatchPlan, book: Logbook) -> Attempt:
        recipe, ranks, train = self.recipe, self.ranks, self.workload.splits.train

        # ---- build -----------------------------------------------------------------------------------------------
        course = Course(recipe, len(train))
        progress = self.stage.progress(recipe, self.workload)
        if recipe.resilience.preflight and ranks.from_first(not CheckpointStore(self.run).candidates(self.stage.number)):
            preflight(lambda: self._engine(plan), self.stream(plan, progress), self.workload.loss, plan.micro_batch)
        engine = self._engine(plan)
        averaged = None
        if (decay := recipe.training.ema_decay) is not None:
            averaged = AveragedModel(engine.module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        keep = Retention(recipe.checkpoints.keep_latest, recipe.checkpoints.keep_best, self.workload.goal.direction)

        # ---- resume ----------------------------------------------------------------------------------------------
        seed_everything(recipe.seed, ranks.rank)  # dropout differs by rank
        resumer = Resumer(self.run, recipe, ranks, engine, averaged, train.fingerprint, book.beat, self.stage.number)
        resumed = resumer.resume()
        progress = resumed.under(progress) if resumed else progress
        progress.segment, progress.cadence.nodes = book.segment, len(set(ranks.gather(this_host())))
        record = begin_record(self, progress, course, plan, resumed=resumed is not None)
        saver = Saver(self.run, ranks, engine, averaged, book.attempt, self.report, keep, book.beat)
        rollback = Rollback(self.workload, engine, resumer, saver, record, book)
        rollback.apply(progress)
        return Attempt(self, plan, course, engine, averaged, progress, record, saver, rollback, book)

    def stream(self, plan: BatchPlan, progress: Progress) -> Generator[StepBatch, None, None]:
        """The batches from where `progress` stands."""
        train = self.workload.splits.train
        order = SampleOrder(len(train), train.fingerprint, self.recipe.seed, progress.phase, frozenset(progress.excluded))
        return training_steps(train, order, plan, progress.cursor, workers=self.recipe.data.loader_workers)

    def _engine(self, plan: BatchPlan) -> Engine:
        seed_everything(self.recipe.seed)  # the same initial weights on every rank
        return build_engine(self.recipe, self.stage.model(self.workload), plan, self.ranks)


@dataclass
class Attempt:
    """From one start of the workers to their end; `progress` is where it stands."""

    trainer: Trainer
    plan: BatchPlan
    course: Course
    engine: Engine
    averaged: AveragedModel | None
    progress: Progress
    record: Recorder
    saver: Saver
    rollback: Rollback
    book: Logbook
    _saved_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        trainer = self.trainer
        self.recipe, self.ranks, self.workload = trainer.recipe, trainer.ranks, trainer.workload
        self.busy = Busy(self.workload.loss)
        self.evaluate = Evaluator(self.recipe, self.workload, self.ranks, self.plan.micro_batch)
        self.pulse = Pulse(self.ranks, self.recipe.resilience.poll_s, trainer.notice)
        self.stream = trainer.stream(self.plan, self.progress)

    def run_on(self) -> Summary:
        """Train on from where `progress` stands, through spikes, to the end or a request to stop."""
        try:
            if self.progress.step == self.progress.first_step:
                self.save()  # so that there is something to roll back to from the first step on
            if self.progress.owes_validation:
                self.keep(self.validate(), due=self.course.over(self.progress))
            # ---- repeat ------------------------------------------------------------------------------------------
            while not self.course.over(self.progress):
                try:
                    self.step()
                except SpikeError as error:
                    self.progress = self.rollback.roll_back(self.progress, error.spike)
                    self._restart_stream()
            self.stream.close()  # ends the loader's processes
            return self.finish()
        except StopRequested as stop:
            return self.stop(stop.request)

    def step(self) -> None:
        """One optimizer step, and what is due after it.

        Raises:
            SpikeError: the loss or the weights are not sound.
            StopRequested: here the run shall end.
        """
        progress, course, recipe = self.progress, self.course, self.recipe
        self.book.at("data")
        since = time.monotonic()
        batch = next(self.stream)
        self.busy.add(time.monotonic() - since)
        if self.rollback.leave_out(progress, batch):
            self._restart_stream()
            return
        self.book.at("step", progress.step)
        rate = course.rate_at(progress.step - progress.first_step) * progress.rate_factor * progress.remedies.rate_factor
        with memory_guard(self.plan.micro_batch):
            result = self.engine.step(batch.micro_batches, self.busy.loss, rate)
        if self.averaged is not None:
            self.averaged.update_parameters(self.engine.module)
        before, progress.cursor, progress.step = progress.cursor, batch.cursor, progress.step + 1
        self.book.stepped(progress.step, recipe.training.global_batch)
        self.record.step(result)
        # What is due is the same on all ranks, and all of it needs to know first that the loss is sound.
        log_due = progress.step == 1 or course.due(recipe.tracking.log_every, before, progress)
        validation_due = course.due(recipe.validation.every, before, progress)
        permanent = course.due(recipe.checkpoints.keep_every, before, progress, end=False)
        save_due = permanent or course.due(recipe.checkpoints.every, before, progress)
        pulse_due = self.pulse.due(progress.step)
        if log_due or validation_due or save_due or pulse_due:
            self.record.look(progress)
        if log_due:
            self.record.training(progress, rate)
        goal = self.validate() if validation_due else None
        self.keep(goal, due=save_due or course.over(progress), permanent=permanent)
        if pulse_due:
            self.hear()

    def validate(self) -> float:
        """Measure the model on the validation split; returns the goal metric.

        Raises:
            StopRequested: it was broken off; a resume measures before it trains on.
        """
        self.progress.owes_validation = True
        model = self.engine.module if self.averaged is None else self.averaged.module
        with self.book.during("validation"), self.record.pause():
            self.ranks.average_buffers(model)
            result = self._measure(model, self.workload.splits.validation)
            self.progress.owes_validation = False
            metrics = self.record.evaluation(self.progress, "val", result)
            react(self.progress, metrics, self.recipe, self.course, self.record)
        return metrics[self.record.summary.goal]

    def keep(self, goal: float | None, *, due: bool = False, permanent: bool = False) -> None:
        """Save where it is due, where the goal just measured is among the best, and at the end (early stopping's too)."""
        if due or self.record.is_among_best(goal, self.recipe.checkpoints.keep_best, self.saver.under_way):
            self.save(goal, permanent=permanent, wait=self.course.over(self.progress))
        if goal is not None:
            self.trainer.observe(self.progress, goal)

    def save(self, goal: float | None = None, *, permanent: bool = False, wait: bool = False) -> None:
        """Begin a checkpoint; with `wait`, see it complete, trying again while the storage is away.

        Raises:
            SpikeError: the weights are not finite; nothing was published.
            OSError: it could not be written at all.
        """
        metrics = {} if goal is None else {self.record.summary.goal: goal}
        with self.book.during("saving"), self.record.pause():
            self.record.flush()  # what happened before a checkpoint is on storage before it: a resume never computes it again
            settled = self.saver.save(self.progress, metrics, goal=goal, permanent=permanent, wait=wait)
            self._saved_s = time.monotonic()
        self.record.settled(self.progress, settled)

    def hear(self) -> None:
        """Put together with the other ranks what has come from outside, and act on it; may raise as `step` does."""
        since_save_s, saver, step = time.monotonic() - self._saved_s, self.saver, self.progress.step
        auto = self.recipe.checkpoints.ephemeral == "auto" and since_save_s > self.progress.cadence.interval_s()
        due = auto or saver.owes_one
        news = self.pulse.beat(step, saver.standing, self.busy, self.book.request, save=due, cost_s=saver.duration_s)
        self.book.keep()
        self.progress.cadence.observe_uptime(self.pulse.passed_s)
        self.record.heard(self.progress, news)
        self.record.settled(self.progress, saver.settle(news.standings))
        if news.save:
            self.save(wait=news.urgent)
        if news.request is not None and news.request.kind == "save":
            self.save(wait=True)
            with self.record.pause():
                self.book.answer_and_hold(news.request, _HOLD_S)  # who asked will end these workers: more steps would be lost
        elif news.request is not None:
            raise StopRequested(news.request)

    def stop(self, request: Request) -> Summary:
        """End here, on request."""
        self.stream.close()
        self.save(wait=True) if request.kind == "pause" else self.record.settled(self.progress, self.saver.wait())
        self.record.stop(self.progress, "paused" if request.kind == "pause" else "cancelled")
        self.book.answer_and_hold(request, 0)
        self.ranks.gather(None)
        return self.record.summary

    def finish(self) -> Summary:
        """Training is over: measure the best checkpoint on the test split, after the last phase."""
        self.record.settled(self.progress, self.saver.wait())
        self.saver.retire()
        if self.trainer.stage.last:
            with self.book.during("validation"):
                best = load_weights(self.trainer.run, "best")
                model = with_weights(self.workload, best).to(self.ranks.device)
                results = self.record.evaluation(self.progress, "test", self._measure(model, self.workload.splits.test))
            self.record.finish(self.progress, results, f"test of {best.checkpoint}", self.workload.pictures(model))
        self.ranks.gather(None)  # rank 0 has written the summary: nobody leaves before
        return self.record.summary

    def _measure(self, model: nn.Module, samples: SampleSet) -> Evaluation:
        """Evaluate, asking every few batches whether somebody wants the run to stop."""
        ticks = itertools.count(1)

        def tick() -> None:
            self.book.beat()
            if next(ticks) % _TICKS == 0:
                request = self.ranks.from_first(self.book.request)
                if request is not None and request.kind != "save":
                    raise StopRequested(request)

        with memory_guard(self.plan.micro_batch):
            return self.evaluate(model, samples, tick)

    def _restart_stream(self) -> None:
        self.stream.close()
        self.stream = self.trainer.stream(self.plan, self.progress)
