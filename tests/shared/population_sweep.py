"""A population of four on a few digits, for tests; run as a script, a driver of it that can be killed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from longhaul.data.digits import default_root, write_digits
from longhaul.recipe.load import parse_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.lease import lease
from longhaul.resilience.run_directory import RunDirectory
from longhaul.resilience.sweep_directory import SweepState
from longhaul.training.loop import Trainer
from longhaul.tuning.board import Board
from longhaul.tuning.population.population import run_population
from longhaul.tuning.sweep_plan import plan

# 40 images in steps of 8: 5 steps an epoch, 30 in all, compared at 10 and at 20.
SWEEP = """
name: pop
recipe:
  name: base
  model: {name: tiny_cnn}
  data: {kind: imagefolder, root: ROOT, resolution: 16, loader_workers: 0}
  training: {epochs: 6, global_batch: 8, micro_batch: 8}
  checkpoints: {keep_latest: 50}
  resilience: {preflight: false, poll_s: 0.2}
  tracking: {log_every: 1 steps}
search:
  kind: random
  trials: 4
  seed: 1
  space:
    training.optimizer.lr: {log_uniform: [1.0e-5, 1.0e-1]}
    training.optimizer.weight_decay: {log_uniform: [1.0e-4, 1.0]}
    workload.label_smoothing: {choice: [0.0, 0.1]}
stopping: {kind: pbt, every_epochs: 2, quantile: 0.25}
"""


def few_digits(root: Path) -> Path:
    """Four classes of the digits: 10 training, 8 validation and 6 test images each."""
    digits = write_digits(default_root())
    for part, count in (("train", 10), ("val", 8), ("test", 6)):
        for digit in "0123":
            (root / part / digit).mkdir(parents=True)
            for file in sorted((digits / part / digit).iterdir())[:count]:
                shutil.copy(file, root / part / digit / file.name)
    return root


def population_sweep(data: Path, *overrides: str) -> SweepRecipe:
    """The sweep over the images below `data`."""
    return parse_sweep(SWEEP, overrides=[f"recipe.data.root={data}", *overrides])


def train_population(sweep: SweepRecipe, storage: Path, trainer: type[Trainer] = Trainer) -> SweepState:
    """Train it on the connected cluster, below `storage`."""
    planned = plan(sweep, str(storage), sweep.name, folder=Path.cwd())
    with lease(RunDirectory(planned.directory.storage)):
        planned.directory.save(planned.sweep, planned.state)
        board = Board(planned.directory, planned.sweep, planned.state, lambda state: None)
        run_population(planned, board, trainer)
    return board.state


if __name__ == "__main__":
    import ray

    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
    train_population(population_sweep(Path(sys.argv[2]), "resources.parallel=1"), Path(sys.argv[3]))
