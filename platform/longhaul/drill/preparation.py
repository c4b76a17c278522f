"""From a recipe to what a drill runs: the recipe made short and steady, its twin without the poison, the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longhaul.data.order import SampleOrder
from longhaul.data.subset import excluded_indices
from longhaul.drill.faults import KINDS, Fault, Kind, schedule, steps_for
from longhaul.errors import UserError
from longhaul.recipe import Recipe, load
from longhaul.training.course import Course
from longhaul.workloads import build


@dataclass(frozen=True)
class Preparation:
    """What is going to be run.

    Attributes:
        recipe: of the disturbed run.
        twin: of the undisturbed one: without the poisoned samples from its start.
        overrides: what the drill changed about the recipe, then what the user did.
        faults: the schedule.
        order: of the samples that make both runs' final weights.
        steps: the length of the runs.
    """

    recipe: Recipe
    twin: Recipe
    overrides: list[str]
    faults: list[Fault]
    order: SampleOrder
    steps: int


def own_overrides(faults: int) -> list[str]:
    """What a drill changes about every recipe.

    A small network, as the drill's S3 server takes about 20 MiB a second. Saves at fixed steps and no others, so that both
    runs save alike. Every loss on record. Any number of restarts.
    """
    return [
        "training.epochs=null", f"training.steps={steps_for(faults)}", "model.name=test_resnet",
        "checkpoints.every=4 steps", "checkpoints.ephemeral='off'", "tracking.log_every=1 step", "tracking.trackers=[]",
        "scaling.workers=2", "scaling.gpu=false", "data.loader_workers=0",
        "resilience.hang_s=15", "resilience.poll_s=1",
        "resilience.budgets={preemption: -1, capacity: -1, lost: -1, hang: -1, memory: -1}",
    ]  # fmt: skip


def prepare(path: Path, overrides: Sequence[str], faults: int, seed: int, kinds: Sequence[str] = ()) -> Preparation:
    """Read the recipe and decide everything.

    Args:
        path: of the recipe.
        overrides: of the user, after the drill's own.
        faults: how many.
        seed: of the schedule.
        kinds: to choose from; all where empty.

    Raises:
        UserError: a kind is unknown, the recipe cannot be run, or is too short for so many faults.
    """
    every = [*own_overrides(faults), *overrides]
    recipe = load(path, every)
    if recipe.scaling.elastic:
        raise UserError("scaling.workers: a drill compares with a run of the same size", "Give one number of workers")
    if recipe.phases:
        raise UserError("phases: a drill trains a single one", "Leave them out: --set 'phases=[]'")
    train = build(recipe).splits.train
    order = SampleOrder(
        len(train), train.fingerprint, recipe.seed, excluded=frozenset(excluded_indices(train, recipe.data.excluded))
    )
    course = Course(recipe, len(train))
    batch = recipe.training.global_batch
    found = schedule(seed, faults, _checked(kinds), order, steps=course.total_steps, batch=batch, ranks=recipe.scaling.most)
    poisoned = [fault.sample for fault in found if fault.sample is not None]
    without = [*recipe.data.excluded, *(train.ids[index] for index in poisoned)]
    twin = recipe.model_copy(update={"data": recipe.data.model_copy(update={"excluded": tuple(without)})})
    final = SampleOrder(len(train), train.fingerprint, recipe.seed, excluded=order.excluded | set(poisoned))
    return Preparation(recipe, twin, every, found, final, course.total_steps)


def _checked(kinds: Sequence[str]) -> list[Kind]:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"kind of fault {unknown[0]!r}: not known", f"Choose from {', '.join(KINDS)}")
    return [kind for kind in KINDS if not kinds or kind in kinds]
