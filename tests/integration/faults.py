"""Train functions with faults around the real one; workers import this module by path, so it needs no package."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any


def _trainer(config: dict[str, Any]) -> Any:
    import ray.train
    import ray.train.torch
    import torch

    from longhaul.resilience.run_directory import RunDirectory
    from longhaul.training.loop import Trainer
    from longhaul.training.on_ray.report import report_checkpoint
    from longhaul.training.ranks import Ranks
    from longhaul.workloads import build

    torch.set_num_threads(1)
    run = RunDirectory.open(config["run"])
    recipe, context = run.recipe(), ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    return Trainer(recipe, build(recipe), run, ranks, partial(report_checkpoint, run))


def killed_at_call(calls: int, rank: int, marker: str, config: dict[str, Any]) -> None:
    """Like `train_worker`, but `rank` is ended by SIGKILL inside its `calls`-th loss; once, as `marker` remembers."""
    trainer = _trainer(config)
    seen, loss = 0, trainer.workload.loss

    def counted(model: Any, batch: Any) -> Any:
        nonlocal seen
        seen += 1
        if trainer.ranks.rank == rank and seen == calls and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    trainer.workload.loss = counted
    trainer.train()


def cursor_ignored(calls: int, rank: int, marker: str, config: dict[str, Any]) -> None:
    """Like `killed_at_call`, with a defect: after the resume the data start from the beginning again."""
    from longhaul.training import loop

    honest = loop.training_steps

    def forgetful(samples: Any, order: Any, plan: Any, cursor: int, *, workers: int) -> Iterator[Any]:
        from longhaul.data.loader import StepBatch

        for batch in honest(samples, order, plan, 0, workers=workers):
            yield StepBatch(batch.micro_batches, batch.cursor + cursor)

    def generator(*args: Any, **kwargs: Any) -> Any:
        return forgetful(*args, **kwargs)

    loop.training_steps = generator
    try:
        killed_at_call(calls, rank, marker, config)
    finally:
        loop.training_steps = honest
