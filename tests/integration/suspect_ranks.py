"""What each rank of `test_suspects` runs: `python suspect_ranks.py ROOT RANK WORLD_SIZE PORT`, over gloo.

For each engine: train two steps, search a batch that holds two broken samples, train on; and the same without the search.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from longhaul.data.loader import BatchPlan
from longhaul.recipe.schema import TrainingSection
from longhaul.training.engine.deepspeed_engine import DeepSpeedEngine
from longhaul.training.engine.engine import Engine
from longhaul.training.engine.torch_engine import TorchEngine
from longhaul.training.ranks import Ranks
from longhaul.training.recovery.suspects import find

ENGINES = ("torch", "zero1", "zero2", "zero3")
BATCH = 8


class Problem:
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        losses = functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")
        return (losses * batch["weight"]).mean()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 7), nn.Dropout(0.5), nn.Linear(7, 2))


def build(name: str, plan: BatchPlan, ranks: Ranks) -> Engine:
    section = TrainingSection.model_validate(
        {"steps": 9, "engine": name, "clip_norm": 0.5, "global_batch": BATCH, "micro_batch": 2}
    )
    if name == "torch":
        return TorchEngine(section, network(), ranks)
    return DeepSpeedEngine(section, network(), plan, ranks)


def batches(step: int, plan: BatchPlan, bad: dict[int, float]) -> list[dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(step)
    whole = {
        "image": torch.randn(BATCH, 3, 8, 8, generator=draws),
        "label": torch.arange(BATCH) % 2,
        "index": torch.arange(BATCH) + 100,
        "weight": torch.tensor([bad.get(place, 1.0) for place in range(BATCH)]),
    }
    own = {name: value[plan.rank :: plan.world_size] for name, value in whole.items()}
    return [{name: value[at : at + plan.micro_batch] for name, value in own.items()} for at in range(0, len(own["label"]), 2)]


def go(name: str, ranks: Ranks, *, search: bool) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    plan = BatchPlan.derive(BATCH, 2, ranks.rank, ranks.world_size)
    torch.manual_seed(ranks.rank)
    problem, engine = Problem(), build(name, plan, ranks)
    found = {}
    for step in range(4):
        if step == 2 and search:
            for case, bad in (("nonfinite", {1: float("nan"), 6: float("inf")}), ("sigma", {4: 300.0}), ("sound", {})):
                kind = "sigma" if case == "sigma" else "nonfinite"
                suspects = find(problem, engine, batches(9, plan, bad), ranks, kind)  # type: ignore[arg-type]
                found[case] = [one.index for one in suspects]
        engine.step(batches(step, plan, {}), problem.loss, 0.01)  # type: ignore[arg-type]
    return found, engine.weights()


def main() -> None:
    root, (rank, world_size, port) = Path(sys.argv[1]), map(int, sys.argv[2:])
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size)
    )
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    for name in ENGINES:
        found, weights = go(name, ranks, search=True)
        _, undisturbed = go(name, ranks, search=False)
        same = all(torch.equal(value, undisturbed[key]) for key, value in weights.items())
        (root / f"{name}-{rank}.json").write_text(json.dumps({"found": found, "same": same, "tensors": len(weights)}))
    dist.destroy_process_group()
    # Gloo's threads may still hold tensors when the interpreter ends, and then abort the process; all that counts is on disk.
    os._exit(0)


if __name__ == "__main__":
    main()
