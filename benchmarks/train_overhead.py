"""What the training loop costs over a bare torch loop: images a second of both, on the same model, data and loader.

    python benchmarks/train_overhead.py [--steps 101] [--rounds 5]

Both sides train resnet10t on the digits at 32 px, micro-batch 32, AdamW, in one process with one thread, from the same
`data.loader.training_steps`. Ours is the whole `Trainer` (logging every 10 steps as by default, metrics to Parquet, summary)
with validation and saving kept out of the clock, as its own throughput figure keeps them out. Rounds alternate, so that a
machine that slows down slows both. A side's figure is the median over its stretches of ten steps, so that a hiccup of the
machine counts for little; the ratio of a round is ours over bare, and the median of the rounds is printed.

Prediction, written before the first measurement: 0.98; the loop adds per step a list append, a Python call or two and,
every tenth step, one mean and a few rows of Parquet; DDP is not in it on one rank.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise

import torch

from longhaul.data.loader import BatchPlan, training_steps
from longhaul.data.order import SampleOrder
from longhaul.data.samples import Batch
from longhaul.recipe import Recipe, parse
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.engine.optimizer import build_optimizer
from longhaul.training.loop import Trainer
from longhaul.training.ranks import Ranks
from longhaul.workloads import Workload, build

RECIPE = """
name: overhead
data: {kind: digits, resolution: 32, augment: shift, loader_workers: 0}
model: {name: resnet10t}
training: {steps: STEPS, global_batch: 32, micro_batch: 32}
validation: {every: 1000000 steps}
checkpoints: {every: 1000000 steps, keep_best: 0}
"""


@contextlib.contextmanager
def clocked(workload: Workload) -> Iterator[list[float]]:
    """The times at which the workload's loss is called: both sides are timed from their first step to their last."""
    clock: list[float] = []
    loss = workload.loss

    def timed(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        clock.append(time.perf_counter())
        return loss(model, batch)

    workload.loss = timed  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        workload.loss = loss  # type: ignore[method-assign]


def ten_steps(clock: list[float]) -> float:
    """The median over stretches of ten steps, each with one log point: a machine's hiccups touch few of them."""
    marks = clock[::10]
    return statistics.median(after - before for before, after in pairwise(marks))


def bare(recipe: Recipe, workload: Workload, steps: int) -> float:
    """A plain loop: seconds for ten steps."""
    torch.manual_seed(0)
    model = workload.build_model().train()
    optimizer = build_optimizer(recipe.training.optimizer, model)
    samples = workload.splits.train
    stream = training_steps(samples, SampleOrder(len(samples), samples.fingerprint, 0), BatchPlan.derive(32, 32), 0, workers=0)
    with clocked(workload) as clock:
        for _ in range(steps):
            (batch,) = next(stream).micro_batches
            workload.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return ten_steps(clock)


def ours(recipe: Recipe, workload: Workload, root: str, name: str) -> float:
    """The Trainer: seconds for ten steps."""
    run = RunDirectory.create(root, name, recipe)
    with clocked(workload) as clock:
        Trainer(recipe, workload, run, Ranks(0, 1, torch.device("cpu")), lambda name, metrics: None).train()
    return ten_steps(clock)


def main() -> None:
    """Alternate the two and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=101)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the Trainer's time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = parse(RECIPE.replace("STEPS", str(options.steps)))
    workload = build(recipe)
    images = 32 * 10
    ratios = []
    with tempfile.TemporaryDirectory() as root:
        bare(recipe, workload, 11)  # warm-up
        for number in range(options.rounds):
            plain, mine = bare(recipe, workload, options.steps), ours(recipe, workload, root, f"round-{number}")
            ratios.append(plain / mine)
            speeds = f"bare {images / plain:7.1f} images/s   longhaul {images / mine:7.1f} images/s"
            print(f"round {number}: {speeds}   ratio {ratios[-1]:.3f}")
        print(f"median ratio longhaul / bare: {statistics.median(ratios):.3f} (aim: at least 0.97)")
        if options.profile:
            with cProfile.Profile() as profile:
                ours(recipe, workload, root, "profiled")
            pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    main()
