"""A grid that is killed at random times and called again, against one that runs in peace: the same work, the same table?

    python benchmarks/sweeps/kills.py --kills 20 --seed 1

Both train the same grid (tiny networks on the digits, two at a time). The one that is disturbed loses its driver by SIGKILL,
and with it the whole Ray cluster, at a random time: after so many steps of that call that all kills find something to train,
whatever the machine's speed, or one time in five while it still starts; then the same command is given again.
Every optimizer step that is begun is counted by a byte in a file. Prediction: no cell is trained twice; what is repeated is at
most the steps since the last checkpoint (here every four steps) of the two cells that train when the kill comes, about four
steps a kill; scores and results are bitwise the same.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SWEEP = """
name: kills
recipe:
  seed: 3
  model: {name: tiny_cnn}
  data: {kind: digits, augment: shift, loader_workers: 0}
  training: {epochs: 3, global_batch: 64, micro_batch: 64, optimizer: {name: adamw, lr: 2.0e-3}, schedule: {name: cosine}}
  checkpoints: {every: 4 steps, keep_latest: 2, keep_best: 1}
  resilience: {preflight: false}
grid:
  model.name: [tiny_cnn, test_resnet, test_efficientnet]
  data.resolution: [16, 24, 32, 40]
"""


def drive(storage: str) -> None:
    """What is killed: one call of the sweep, on a Ray cluster of its own."""
    import ray

    from longhaul.data.loader import BatchPlan, StepBatch
    from longhaul.recipe.load import parse_sweep
    from longhaul.training.loop import Trainer
    from longhaul.training.progress import Progress
    from longhaul.tuning.sweep import run
    from longhaul.tuning.sweep_plan import plan

    class Counting(Trainer):
        """Writes a byte for each step that it begins."""

        def stream(self, plan: BatchPlan, progress: Progress) -> Generator[StepBatch, None, None]:
            folder = Path(storage) / "steps"
            folder.mkdir(exist_ok=True)
            for batch in super().stream(plan, progress):
                with (folder / self.run.name).open("ab") as file:
                    file.write(b".")
                yield batch

    planned = plan(parse_sweep(SWEEP), storage, "kills", folder=Path.cwd())
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    state = run(planned, trainer=Counting)
    print([(cell.label, cell.standing, cell.reason) for cell in state.cells if cell.standing != "finished"])


def call(storage: Path, kill_after_s: float | None = None, *, kill_after_steps: int = 0) -> bool:
    """Call the sweep; whether it came to its end. Killed, all its processes are waited for.

    Args:
        storage: of the sweep.
        kill_after_s: None lets it end.
        kill_after_steps: that this call has begun; `kill_after_s` counts from there.
    """
    end = sum(steps(storage).values()) + kill_after_steps
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, __file__, "--drive", str(storage)], env=environment, start_new_session=True)
    try:
        while process.poll() is None and sum(steps(storage).values()) < end:
            time.sleep(0.02)
        return process.wait(kill_after_s) == 0
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, left = psutil.wait_procs(family, timeout=30)  # Ray's processes end when they miss their driver
        for one in left:
            one.kill()
        return False


def steps(storage: Path) -> dict[str, int]:
    """Steps begun, by cell."""
    return {file.name: file.stat().st_size for file in sorted((storage / "steps").glob("*"))}


def table(storage: Path) -> list[tuple[object, ...]]:
    """What each cell came to."""
    from longhaul.resilience.sweep_directory import SweepDirectory

    sweep = SweepDirectory.at(str(storage), "kills")
    cells = sweep.state().cells if sweep.exists else []  # killed before it had begun
    return [(cell.key, cell.standing, cell.steps, cell.scores, cell.results) for cell in cells]


def main() -> None:
    """Print both amounts of work, and whether the tables agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive)
        return
    sys.path.insert(0, str(ROOT / "platform"))
    with tempfile.TemporaryDirectory(prefix="longhaul-kills-") as scratch:
        peace, trouble = Path(scratch) / "peace", Path(scratch) / "trouble"
        began = time.monotonic()
        assert call(peace)
        print(f"in peace: {sum(steps(peace).values())} steps in {len(steps(peace))} cells, {time.monotonic() - began:.0f} s")
        dice, kills = random.Random(arguments.seed), 0
        most = max(1, sum(steps(peace).values()) // max(arguments.kills, 1))  # on average half of it: enough is left for all
        while True:
            if kills == arguments.kills:
                assert call(trouble)
                break
            starting = kills % 5 == 4
            wait_s, some = (dice.uniform(2.0, 14.0), 0) if starting else (dice.uniform(0.0, 0.3), dice.randint(1, most))
            if call(trouble, wait_s, kill_after_steps=some):
                break
            kills += 1
            done = sum(standing == "finished" for _, standing, *_ in table(trouble))
            when = f"{wait_s:.1f} s after the call" if starting else f"after {some} steps"
            print(f"kill {kills:2}, {when}: {sum(steps(trouble).values())} steps so far, {done} cells finished", flush=True)
        clean, disturbed = steps(peace), steps(trouble)
        again = {key: disturbed.get(key, 0) - count for key, count in clean.items()}
        extra = sum(again.values())
        print(f"killed {kills} times: {sum(disturbed.values())} steps; {extra} repeated ({extra / sum(clean.values()):.2%}), "
              f"{extra / max(kills, 1):.1f} a kill; most of one cell {max(again.values())}")  # fmt: skip
        print("tables agree in every number" if table(peace) == table(trouble) else "TABLES DIFFER")


if __name__ == "__main__":
    main()
