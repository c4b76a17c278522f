"""Run directories as a training would leave them, written by the same writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory, Summary

TEXT = "{name: tiny, model: {name: resnet10t}, data: {kind: digits}, training: {epochs: 2, global_batch: 8, micro_batch: 8}}"
T0 = 1_700_000_000.0
"""When the runs of these tests started, in seconds since 1970."""

MakeRun = Callable[..., RunDirectory]


def write_steps(
    run: RunDirectory, steps: range, *, segment: int = 1, scale: float = 1.0, start_s: float = T0, offset: float = 0.0
) -> None:
    """Training metrics at each step (a step lasts 2 s, an epoch 10 steps), validation at each epoch's end."""
    with run.metric_writer() as writer:
        for step in steps:
            values = {"train/loss": offset + scale / step, "train/lr": 1e-3, "train/samples_per_s": 4.0}
            if step % 10 == 0:
                values |= {"val/loss": scale / step, "val/top1": 1 - scale / step}
            for name, value in values.items():
                time_s = start_s + 2.0 * (step - steps.start + 1)
                row = {"segment": segment, "step": step, "epoch": step / 10, "samples": step * 8, "time_s": time_s}
                writer.append(**row, name=name, value=value)


def write_summary_at(run: RunDirectory, updated_s: float, summary: Summary) -> None:
    """`write_summary`, at a time of the test's choosing."""
    run.storage.write_bytes("summary.json", summary.model_copy(update={"updated_s": updated_s}).model_dump_json().encode())


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "runs")


@pytest.fixture
def make_run(root: str) -> MakeRun:
    def make(name: str, overrides: tuple[str, ...] = (), *, steps: int = 20, scale: float = 1.0, **changes: Any) -> RunDirectory:
        run = RunDirectory.create(root, name, parse(TEXT, overrides=overrides))
        if steps:
            write_steps(run, range(1, steps + 1), scale=scale)
        state: dict[str, Any] = {"status": "finished", "goal": "val/top1", "workload": "classification", "segment": 1}
        state |= {"step": steps, "total_steps": 20, "epoch": steps / 10, "started_s": T0, "best": 1 - scale / 20, "best_step": 20}
        write_summary_at(run, T0 + 2.0 * steps, Summary(**(state | changes)))
        return run

    return make
