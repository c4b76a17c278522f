"""Population based training (Jaderberg et al., 2017) of a sweep: `ray.tune.schedulers.PopulationBasedTraining` over runs.

Every `stopping.every_epochs` the worst members go on from the weights of the best ones, with changed values. All that counts lies
in `<sweep>/population/` (`lineage`): after a kill the same call goes on, each member from its newest checkpoint, and decides what
the one before would have decided.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from longhaul.errors import UserError
from longhaul.recipe import Recipe, dump
from longhaul.recipe.sweep import PbtStopping, SearchSection
from longhaul.resilience.checkpoint import CheckpointStore, best_entries
from longhaul.resilience.requests import ask, asked
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import CellRecord, Standing, SweepDirectory
from longhaul.training.alone import can_train_alone
from longhaul.training.course import Course
from longhaul.training.loop import Trainer
from longhaul.training.on_ray.capacity import obtainable
from longhaul.tuning.board import Board
from longhaul.tuning.budget import Budget
from longhaul.tuning.history import SCORE
from longhaul.tuning.population.comparison import Comparison, Members, member_of
from longhaul.tuning.population.lineage import (
    CHANGEABLE,
    POPULATION,
    Best,
    Donor,
    Generation,
    Lineage,
    Member,
    begin_generation,
    explore,
    may_change,
    run_name,
    run_of,
)  # fmt: skip
from longhaul.tuning.population.member import AT_COMPARISON, FAILED, ORDER, STEPS, TRAINED, MemberOrder, train_member
from longhaul.tuning.sizing.cost import training_cost
from longhaul.tuning.sizing.resources import gpu_share, parallel_trials, trial_resources
from longhaul.tuning.sweep_plan import SweepPlan
from longhaul.tuning.trial import validations
from longhaul.tuning.tuner import folder, scratch, settings, stoppable
from longhaul.workloads import build

_ASK_S = 5.0
_ATTEMPTS = 3  # of a trial whose process dies
_STANDINGS: dict[str, Standing] = {"finished": "finished", "failed": "failed", "cancelled": "stopped"}
_TRIES = 20  # at values that make a recipe


def run_population(planned: SweepPlan, board: Board, trainer: type[Trainer] = Trainer) -> None:
    """Train the population of a sweep whose `stopping.kind` is `pbt`, from wherever it stands, on the connected Ray cluster.

    On Ctrl-C, or when the budget is spent, what trains saves and ends; the same call goes on.

    Args:
        planned: from `sweep_plan.plan`; the caller holds the sweep's lease.
        board: of the sweep; its cells become the members, each known by the run of its newest generation.
        trainer: tests write down what theirs does.

    Raises:
        UserError: the recipe cannot be a population's, nothing in its space may change, or the members' runs are of another one.
    """
    section, stopping = planned.sweep.search, planned.sweep.stopping
    assert section is not None
    assert isinstance(stopping, PbtStopping)
    check_population(planned.example, section, stopping)
    lineage = Lineage.load(planned.directory)
    lineage.draw_members(section, board.state.direction)
    population = Population(planned, board, section, stopping, lineage)
    population.begin()
    left = [member for member in lineage.members if not population.over(member)]
    if left:
        _tune(population, left, trainer)
    population.end()


def check_population(recipe: Recipe, search: SearchSection, stopping: PbtStopping) -> None:
    """Refuse what cannot be trained as a population.

    Raises:
        UserError: says what, and the fix.
    """
    if not any(may_change(path) for path in search.space):
        raise UserError("stopping.kind pbt: no field of search.space may change on the way", f"Search {', '.join(CHANGEABLE)}")
    if search.trials < 2:
        raise UserError("search.trials 1: a population has two members or more", "Set search.trials to 4 or more")
    if not can_train_alone(recipe):
        problem = "stopping.kind pbt: members of several workers, or under DeepSpeed, cannot be copied"
        raise UserError(problem, "Set scaling.workers to 1 and training.engine to torch, or stopping.kind to asha")
    if recipe.phases:
        raise UserError("stopping.kind pbt: a recipe in phases has no one schedule to change", "Take phases out of the recipe")
    course = Course(recipe, len(build(recipe).splits.train))
    validated, epoch = course.samples(recipe.validation.every), course.epoch_samples
    if validated > stopping.every_epochs * epoch:
        problem = f"stopping.every_epochs {stopping.every_epochs:g}: members are validated every {validated / epoch:g} epochs"
        raise UserError(problem, "Raise stopping.every_epochs, or lower validation.every")
    if course.total_samples <= stopping.every_epochs * epoch:
        problem = f"stopping.every_epochs {stopping.every_epochs:g}: members train for {course.total_samples / epoch:g} epochs"
        raise UserError(problem, "Lower stopping.every_epochs, so that there is a comparison before the end")


@dataclass
class Population:
    """A population while it trains: what its comparisons decide, and what the board is told.

    Attributes:
        ending: why no more trials begin and those that run are paused; None while all goes on.
        running: how many members train just now.
    """

    planned: SweepPlan
    board: Board
    search: SearchSection
    stopping: PbtStopping
    lineage: Lineage
    ending: str | None = None
    running: int = 0
    gpu: bool = False
    taken: dict[str, float] = field(default_factory=dict)
    _recipes: dict[str, Recipe] = field(default_factory=dict)
    _asked_s: float = 0.0

    @property
    def directory(self) -> SweepDirectory:
        """The sweep's."""
        return self.planned.directory

    def run(self, member: Member) -> RunDirectory:
        """That of the member's newest generation."""
        return run_of(self.directory, member.number, member.newest.number)

    def over(self, member: Member) -> bool:
        """Whether it has trained to its end."""
        return self.run(member).summary().status == "finished"

    def recipe(self, member: Member) -> Recipe:
        """Of the member's newest generation."""
        if member.run_name not in self._recipes:
            self._recipes[member.run_name] = self.planned.maker.cell(member.newest.values).recipe
        return self._recipes[member.run_name]

    def begin(self) -> None:
        """Write down who is there, and see that their runs are of this sweep.

        Raises:
            UserError: a run has begun with another recipe.
        """
        root = self.directory.storage.child(POPULATION).uri
        for member in self.lineage.members:
            RunDirectory.prepare(root, member.run_name, self.recipe(member))
        former = self.board.state.cells
        known = {int(record.key.split("-")[1]): record for record in former if record.key.startswith("member-")}
        self.board.state.cells[:] = [self._record(member, known.get(member.number)) for member in self.lineage.members]
        self.lineage.save(self.directory)
        self.board.changed(now=True)

    def _record(self, member: Member, former: CellRecord | None) -> CellRecord:
        recipe = self.recipe(member)
        cost = training_cost(recipe)
        gpus = gpu_share(recipe, self.planned.sweep.resources, cost.memory_gb)
        of_member = {"key": member.run_name, "coordinates": dict(member.newest.values), "recipe": dump(recipe), "gpus": gpus}
        if former is None:
            return CellRecord(cost=cost.operations, **of_member)
        standing = "planned" if former.open or former.standing == "failed" else former.standing
        return former.model_copy(update={**of_member, "standing": standing, "reason": None})

    def record(self, member: int) -> CellRecord:
        """The member's row."""
        return self.board.state.cells[member]

    # ---- what the comparison decides -----------------------------------------------------------------------------

    def config(self, member: int) -> dict[str, Any]:
        """See `comparison.Decisions`."""
        of = self.lineage.members[member]
        due = self.lineage.compared + self.stopping.every_epochs
        order = MemberOrder(
            member=member, generation=of.newest.number, recipe=dump(self.recipe(of)), run=self.run(of).uri, due=due, gpu=self.gpu
        )
        return {ORDER: order.model_dump()}

    def branch(self, member: int, donor: int, checkpoint: str, score: float) -> None:
        """See `comparison.Decisions`.

        Raises:
            IntegrityError: the donor's checkpoint is damaged; the member stays what it was.
        """
        of, better = self.lineage.members[member], self.lineage.members[donor]
        epoch = self.lineage.compared + self.stopping.every_epochs
        values, recipe = self._changed(better, f"{self.search.seed}/{epoch:g}/{member}")
        number = of.newest.number + 1
        begin_generation(run_of(self.directory, member, number), recipe, self.run(better), checkpoint)
        origin = Donor(member=donor, generation=better.newest.number, checkpoint=checkpoint, score=score)
        of.generations.append(Generation(number=number, values=values, since=epoch, donor=origin))
        row = self.record(member)
        row.key, row.coordinates, row.recipe = of.run_name, dict(values), dump(recipe)
        row.standing, row.reason = "planned", None

    def _changed(self, donor: Member, seed: str) -> tuple[dict[str, Any], Recipe]:
        draw = random.Random(seed)
        for _ in range(_TRIES):
            values = explore(self.search.space, donor.newest.values, self.stopping.resample, draw)
            try:
                return values, self.planned.maker.cell(values).recipe
            except UserError as error:
                self.board.note(f"{values}: makes no recipe: {error}")
        return dict(donor.newest.values), self.recipe(donor)

    def compared(self, epoch: float, scores: Mapping[int, float]) -> None:
        """See `comparison.Decisions`: everything that the comparison has decided is written down at once."""
        for member, score in scores.items():
            of = self.lineage.members[member]
            of.scores = [*(one for one in of.scores if one[0] < epoch), (epoch, score)]
        self.lineage.compared = epoch
        self.lineage.best = self._best()
        self.lineage.save(self.directory)
        self.board.changed(now=True)

    # ---- what the board is told ----------------------------------------------------------------------------------

    def heard(self, member: int, result: dict[str, Any]) -> None:
        """A report of a trial."""
        row = self.record(member)
        self.board.spent(row, float(result.get("time_this_iter_s", 0.0)), self.taken)
        if FAILED in result:
            row.reason = str(result[FAILED]).splitlines()[0]
        if not math.isnan(result[SCORE]):
            row.reason = None
            self.board.validated(row, result[TRAINED], result[SCORE], result[STEPS])
        if result[AT_COMPARISON]:
            self.board.changed(now=True)

    def look(self, running: set[int]) -> None:
        """See which members train, and whether the budget is spent; while the sweep ends, ask what runs to pause."""
        self.running = len(running)
        for member, row in enumerate(self.board.state.cells):
            row.begun = row.begun or member in running
            if row.open and (row.standing == "running") != (member in running):
                row.standing = "running" if member in running else "planned"
        self.board.tick()
        if self.ending is None:
            self.ending = Budget(self.planned.sweep.budget).over(self.board.state)
        if self.ending is not None and time.monotonic() - self._asked_s > _ASK_S:
            self._asked_s = time.monotonic()
            self.board.note(self.ending)
            for member in running:
                run = self.run(self.lineage.members[member])
                if asked(run) is None:
                    ask(run, "pause")  # again and again: a run that is just starting forgets what was asked before

    def end(self) -> None:
        """Write down where every member stands, and the best checkpoint of all."""
        for member in self.lineage.members:
            row, summary = self.record(member.number), self.run(member).summary()
            row.steps, row.results, row.scores = summary.step, summary.results, self._scores(member)
            row.standing = _STANDINGS.get(summary.status, "planned")
            row.reason = summary.error if row.standing == "failed" else None
            best = best_entries(CheckpointStore(self.run(member)).entries(), self.board.state.direction)
            row.score = best[0].goal if best else row.score
        self.lineage.best = best_of_all = self._best()
        self.lineage.save(self.directory)
        if best_of_all is not None:
            told = f"{self.board.state.goal} {best_of_all.score:.4f} of {best_of_all.checkpoint}"
            self.board.note(f"best: {told}: longhaul export {self.directory.root}/{best_of_all.run}")
        self.board.changed(now=True)

    def _scores(self, member: Member) -> list[tuple[float, float]]:
        """All validations of the member, over its generations: each run has those of its own stretch."""
        runs = [run_of(self.directory, member.number, generation.number) for generation in member.generations]
        return [(epoch, value) for run in runs for _, epoch, value in validations(run, self.board.state.goal)]

    def _best(self) -> Best | None:
        """Over all generations; of equals the earliest, which is the one that the others were copied from."""
        sign = 1.0 if self.board.state.direction == "max" else -1.0
        best: Best | None = None
        for member in self.lineage.members:
            for generation in member.generations:
                run = run_of(self.directory, member.number, generation.number)
                for entry in best_entries(CheckpointStore(run).entries(), self.board.state.direction)[:1]:
                    goal = entry.goal or 0.0
                    if best is None or (sign * goal, -generation.number) > (sign * best.score, -best.generation):
                        where = f"{self.directory.name}/{POPULATION}/{run_name(member.number, generation.number)}"
                        best = Best(
                            member=member.number, generation=generation.number, run=where, checkpoint=entry.name, score=goal
                        )
        return best


class _Look(tune.Callback):
    """Tells the population what Tune sees."""

    def __init__(self, population: Population) -> None:
        self._population = population

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's hook, several times a second."""
        self._population.look({member_of(trial) for trial in trials if trial.status == Trial.RUNNING})

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """Tune's hook: a report."""
        self._population.heard(member_of(trial), result)


class _Ending(tune.Stopper):
    """Ends Tune's loop once the sweep ends and nothing runs any more: those that wait for the others would wait for ever."""

    def __init__(self, population: Population) -> None:
        self._population = population

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial alone."""
        return False

    def stop_all(self) -> bool:
        """Tune's question before each step."""
        return self._population.ending is not None and self._population.running == 0


def _tune(population: Population, members: list[Member], trainer: type[Trainer]) -> None:
    planned, directory = population.planned, population.directory
    cluster = obtainable()
    share = max(record.gpus for record in population.board.state.cells)
    needed = trial_resources(planned.example, planned.sweep.resources, share, cluster)
    population.gpu, population.taken = "GPU" in needed, needed
    parallel = parallel_trials(planned.example, planned.sweep.resources, cluster)
    population.look(set())
    if population.ending is not None:  # an earlier call has spent the budget
        return
    scheduler = Comparison(
        population.stopping,
        population.board.state.direction,
        population,
        members=len(members),
        parallel=parallel,
        seed=population.search.seed,
        since=population.lineage.compared,
    )
    with settings(), stoppable(population), scratch(directory.storage) as name:
        tune.Tuner(
            tune.with_resources(functools.partial(train_member, trainer=trainer), tune.PlacementGroupFactory([needed])),
            param_space={ORDER: tune.grid_search([population.config(member.number)[ORDER] for member in members])},
            tune_config=tune.TuneConfig(
                search_alg=Members(population, parallel),
                scheduler=scheduler,
                reuse_actors=True,  # a new process takes seconds to import torch
                trial_name_creator=folder,
                trial_dirname_creator=folder,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=directory.storage.root,
                storage_filesystem=directory.storage.filesystem,
                callbacks=[_Look(population)],
                stop=_Ending(population),
                failure_config=tune.FailureConfig(max_failures=_ATTEMPTS),
                verbose=0,
            ),
        ).fit()
