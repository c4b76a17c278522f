"""What a save costs training: the stall of `Saver.save` against a synchronous save of the same state, in one run.

    python benchmarks/checkpoint_stall.py [--model resnet50] [--rounds 9]

Both save the same model after one AdamW step (weights and two moments, and a moving average), to the same local disk: once
waiting until the checkpoint counts (copy, write, hash, manifest: what a save costs when nothing runs behind), once handing it
to the thread, as training does. Rounds alternate. No training runs meanwhile; with it, the thread takes its share of the CPU,
which the second figure shows: the time of the steps while a save runs behind, against steps without.

Prediction, written before the first measurement: 0.05. The copy is one pass over memory, into buffers that are there already;
the rest is torch's serialisation, SHA-256 and the disk, each several times slower than a copy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from longhaul.data.loader import BatchPlan
from longhaul.recipe import parse
from longhaul.resilience.checkpoint import Retention
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.checkpoints.saving import Saver
from longhaul.training.engine.engine import build_engine
from longhaul.training.progress import Progress
from longhaul.training.ranks import Ranks
from longhaul.workloads import build

RECIPE = """
name: stall
data: {kind: digits, resolution: 64, loader_workers: 0}
model: {name: MODEL}
training: {steps: 1, global_batch: 8, micro_batch: 8}
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    recipe, ranks = parse(RECIPE.replace("MODEL", arguments.model)), Ranks(0, 1, torch.device("cpu"))
    workload = build(recipe)
    engine = build_engine(recipe, workload.build_model(), BatchPlan.derive(8, 8), ranks)
    averaged = AveragedModel(engine.module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    batch = {name: value[None].repeat(8, *[1] * value.dim()) for name, value in workload.splits.train.read(0, None).items()}

    def step() -> float:
        since = time.perf_counter()
        engine.step([batch], workload.loss, 1e-4)
        return time.perf_counter() - since

    step()
    stalls, waits, quiet, beside = [], [], [], []
    with tempfile.TemporaryDirectory() as root:
        run = RunDirectory.create(root, "stall", recipe)
        saver = Saver(run, ranks, engine, averaged, "benchmark", lambda name, metrics: None, Retention(1, 1, "max"))
        for number in range(arguments.rounds):
            progress = Progress(step=2 * number)
            since = time.perf_counter()
            saver.save(progress, {}, goal=None, permanent=False)
            saver.wait()
            waits.append(time.perf_counter() - since)
            quiet += [step() for _ in range(3)]
            since = time.perf_counter()
            saver.save(progress.model_copy(update={"step": 2 * number + 1}), {}, goal=None, permanent=False)
            stalls.append(time.perf_counter() - since)
            while saver.standing[0] == "writing":
                beside.append(step())
            saver.wait()
    size = sum(value.numel() * value.element_size() for value in engine.module.state_dict().values()) * 4 / 2**20
    stall, wait = statistics.median(stalls[1:]), statistics.median(waits[1:])  # the first pair fills the buffers
    print(f"{arguments.model}: {size:.0f} MiB of state; synchronous {wait:.3f} s, stall {stall:.4f} s")
    print(f"ratio stall / synchronous: {stall / wait:.3f}")
    ratio = statistics.median(beside) / statistics.median(quiet)
    print(f"ratio of a step beside a save / without: {ratio:.2f} ({len(beside)} steps of {statistics.median(quiet):.3f} s)")


if __name__ == "__main__":
    main()
