"""Training in the calling process: for runs of one worker, whose caller has placed them already (a trial of a sweep).

What Ray Train brings (workers, their placement, their restart) is not needed for one; the loop and the run directory are the
same, so that either can go on with what the other has begun.
"""

from __future__ import annotations

import logging
import math
import time

import torch

from longhaul.recipe import Recipe
from longhaul.resilience.incidents import incidents, record_incident
from longhaul.resilience.retries import why_not
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.training.driving import driving
from longhaul.training.loop import Trainer
from longhaul.training.phases import Phases
from longhaul.training.progress import Observe, Progress, unobserved
from longhaul.training.ranks import Ranks
from longhaul.training.recovery.memory import MemoryExhaustedError, give_back, halve
from longhaul.training.stage import Stage
from longhaul.workloads import build

log = logging.getLogger(__name__)


def can_train_alone(recipe: Recipe) -> bool:
    """Whether one process without a process group is enough for it."""
    return recipe.scaling.most == 1 and recipe.training.engine == "torch"


def train_alone(
    recipe: Recipe,
    run: RunDirectory,
    *,
    gpu: bool,
    observe: Observe = unobserved,
    trainer: type[Trainer] = Trainer,
    owner: str | None = None,
) -> Summary:
    """Train `recipe` in `run`, from wherever it stands, to the end or to a request to stop; returns the summary.

    Out of memory, it goes on with half the micro-batch, as often as `resilience.budgets.memory` allows.

    Args:
        recipe: of one worker, engine torch.
        run: its directory.
        gpu: on the first GPU that this process sees; else on the CPU, with as many threads as the recipe has cores a worker.
        observe: told the goal after each validation; raises `StopRequested` to pause the run there.
        trainer: tests write down what theirs does.
        owner: on whose behalf (`resilience.lease`).

    Raises:
        UserError: data or model do not fit the recipe.
        HeldError: another driver holds the run, or has taken it over.
        LonghaulError: the run ended for a reason that it knows (divergence, for one).
    """
    if not gpu:
        torch.set_num_threads(max(math.floor(recipe.scaling.cpus_per_worker), 1))
    ranks = Ranks(0, 1, torch.device("cuda", 0) if gpu else torch.device("cpu"))

    with driving(recipe, run, owner) as held:

        def notice() -> None:
            """Asked every `poll_s`: nobody takes the node away, but another driver may have taken the run over."""
            held.check()

        def watched(progress: Progress, goal: float) -> None:
            held.check()
            observe(progress, goal)

        def of_phase(recipe: Recipe, stage: Stage) -> Trainer:
            return trainer(recipe, build(recipe), run, ranks, _heard, notice, stage, watched)

        while True:
            try:
                return Phases(recipe, run, ranks, of_phase).train()
            except MemoryExhaustedError as error:
                if not _again(recipe, run, error):
                    raise
            give_back()


def _again(recipe: Recipe, run: RunDirectory, error: MemoryExhaustedError) -> bool:
    """Write the incident down; whether to go on with a smaller micro-batch."""
    summary = run.summary()
    reason = why_not("memory", incidents(run), recipe.resilience.budgets, now_s=time.time(), saved_s=0.0)
    if error.micro_batch == 1:
        reason = reason or "not even one sample fits into memory"
    where = {"segment": summary.segment, "step": summary.step}
    record_incident(run, "memory", str(error), first=None, retried=reason is None, reason=reason, **where)
    halve(run, error, **where)
    # As text: a handler that keeps what it is given would keep the frames, and in them the network.
    log.warning("%s; %s", str(error), reason or "the run goes on with half the micro-batch")
    return reason is None


def _heard(name: str, metrics: dict[str, float]) -> None:
    """Of a complete checkpoint there is nobody to tell: it lies in the run directory."""
