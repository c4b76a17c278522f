"""How trials of a sweep end on a real Ray cluster: saved however long that takes, taken over from a killed driver."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longhaul.recipe.load import dump_sweep, parse_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.lease import holder
from longhaul.resilience.requests import ask
from longhaul.resilience.sweep_directory import SweepDirectory, SweepState
from longhaul.training.loop import Attempt, Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

SWEEP = """
name: s
recipe:
  seed: 3
  model: {name: tiny_cnn}
  data: {kind: digits, resolution: 16, loader_workers: 0}
  training: {epochs: 4, global_batch: 64, micro_batch: 64, optimizer: {name: adamw, lr: 2.0e-3}}
  checkpoints: {every: 1000 steps, keep_latest: 2, keep_best: 1}
  resilience: {preflight: false, poll_s: 0.1}
"""


class SlowStop(Trainer):
    """Takes two seconds to pause."""

    def train(self) -> Any:
        stop = Attempt.stop

        def slowly(attempt: Attempt, request: Any) -> Any:
            time.sleep(2)
            return stop(attempt, request)

        Attempt.stop = slowly  # type: ignore[method-assign]
        try:
            return super().train()
        finally:
            Attempt.stop = stop  # type: ignore[method-assign]


def sweep_of(text: str, *overrides: str) -> SweepRecipe:
    return parse_sweep(SWEEP + text, overrides=overrides)


def call(sweep: SweepRecipe, storage: str, trainer: type[Trainer] = Trainer, watch: Any = lambda state: None) -> SweepState:
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    return run(plan(sweep, storage, "s", folder=Path.cwd()), watch, trainer)


def test_the_last_trial_that_is_stopped_early_is_saved_however_long_that_takes(tmp_path: Path) -> None:
    rule = "stopping: {kind: asha, least_epochs: 1, reduction: 2}\nresources: {parallel: 1}\n"
    state = call(sweep_of(f"grid: {{training.optimizer.lr: [0.002, 1.0e-9]}}\n{rule}"), str(tmp_path), SlowStop)
    assert [record.standing for record in state.cells] == ["finished", "stopped"]
    stopped = state.cells[1]
    run = SweepDirectory.at(str(tmp_path), "s").run(stopped.key)
    summary = run.summary()
    assert (summary.status, summary.step) == ("paused", stopped.steps)
    assert not run.storage.exists("lease.json")
    assert not run.storage.exists("request.json")
    assert not SweepDirectory.at(str(tmp_path), "s").storage.exists("request.json")


def test_a_run_that_a_person_pauses_is_left_to_the_next_call(tmp_path: Path) -> None:
    long = sweep_of("grid: {data.resolution: [16]}\n", "recipe.training.epochs=60")
    directory = SweepDirectory.at(str(tmp_path), "s")

    def pause(state: SweepState) -> None:
        if state.cells[0].scores:
            ask(directory.run(state.cells[0].key), "pause")

    state = call(long, str(tmp_path), watch=pause)
    assert [(record.standing, record.reason) for record in state.cells] == [("planned", None)]
    assert directory.run(state.cells[0].key).summary().status == "paused"


DRIVER = """
import sys
from pathlib import Path
import ray
from longhaul.recipe.load import load_sweep
from longhaul.tuning.sweep import run
from longhaul.tuning.sweep_plan import plan

if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
    run(plan(load_sweep(sys.argv[2]), sys.argv[3], "s", folder=Path.cwd()))
"""


def test_the_call_after_a_killed_driver_waits_for_what_that_has_left_and_goes_on(tmp_path: Path, ray_cluster: str) -> None:

    long = sweep_of("grid: {data.resolution: [16]}\n", "recipe.training.epochs=20", "recipe.checkpoints.every=4 steps")
    file, script, storage = tmp_path / "sweep.yaml", tmp_path / "driver.py", str(tmp_path / "runs")
    file.write_text(dump_sweep(long))
    script.write_text(DRIVER)
    directory = SweepDirectory.at(storage, "s")
    with subprocess.Popen([sys.executable, str(script), ray_cluster, str(file), storage]) as driver:
        deadline = time.monotonic() + 120
        while not (directory.exists and directory.state().cells[0].steps):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        driver.kill()
    state = call(long, storage)
    assert [(record.standing, record.reason) for record in state.cells] == [("finished", None)]
    assert holder(directory.run(state.cells[0].key)) is None
