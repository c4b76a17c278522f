"""How much of a sweep's time is not its trials' own, against plain Ray Tune doing the same training?

    python benchmarks/sweeps/overhead.py --trials 8 --trial-s 60

One after another on the same two cores: `longhaul sweep`; plain Ray Tune as its documentation writes a function trainable; the
same with `reuse_actors=True`. All train the same network on the same pictures for the same number of steps, chosen so that a
trial takes about `--trial-s`; two at a time. A trial's own time is from the first line of its function to the last. Overhead:
the two slots' time from the call to its end, less the trials' own, over the trials' own. The Ray cluster is there before; a
slot that has nothing left to do while the last trial ends counts for nobody.

Prediction: plain Ray Tune pays a new process that imports torch for every trial (5 to 8 s of 60); with reuse, once a slot. The
sweep reuses as well, and adds some tens of milliseconds a validation: below 3 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH, SLOTS = 64, 2
VALIDATIONS = 4


def recipe(name: str, steps: int, seeds: int) -> str:
    """The sweep: one network, `seeds` seeds."""
    return f"""
name: {name}
recipe:
  model: {{name: test_resnet}}
  data: {{kind: digits, resolution: 32, loader_workers: 0}}
  training: {{steps: {steps}, global_batch: {BATCH}, micro_batch: {BATCH}, optimizer: {{name: adamw, lr: 1.0e-3}}}}
  validation: {{every: {steps // VALIDATIONS} steps}}
  checkpoints: {{every: {steps // VALIDATIONS} steps, keep_latest: 1, keep_best: 1}}
  resilience: {{preflight: false}}
grid:
  seed: {list(range(seeds))}
"""


def plain(config: dict[str, Any]) -> None:
    """A function trainable as Ray's documentation has it: the same network, data and steps, no house around it."""
    import torch
    from ray import tune
    from torch.nn import functional

    from longhaul.recipe import parse
    from longhaul.workloads import build

    began = time.time()  # as the sweep's: what a process imports before it trains is overhead
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    workload = build(parse(config["recipe"]))
    train, validation = workload.splits.train, workload.splits.validation
    model = workload.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(config["steps"]):
        picked = torch.randint(len(train), (BATCH,)).tolist()
        samples = [train.read(index, None) for index in picked]
        images, labels = torch.stack([s["image"] for s in samples]), torch.stack([s["label"] for s in samples])
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (config["steps"] // VALIDATIONS) == 0:
            model.eval()
            right = 0
            with torch.no_grad():
                for start in range(0, len(validation), 2 * BATCH):
                    samples = [validation.read(i, None) for i in range(start, min(start + 2 * BATCH, len(validation)))]
                    guess = model(torch.stack([s["image"] for s in samples])).argmax(1)
                    right += int((guess == torch.stack([s["label"] for s in samples])).sum())
            model.train()
            with tempfile.TemporaryDirectory() as folder:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/state.pt")
                tune.report({"top1": right / len(validation)}, checkpoint=tune.Checkpoint.from_directory(folder))
    note(config["log"], began)


def note(log: str, began: float) -> None:
    """One trial's own time."""
    with Path(log).open("a") as file:
        file.write(json.dumps([began, time.time()]) + "\n")


def timed_trial(log: str) -> Any:
    """The sweep's trainable, with its own time written down."""
    from longhaul.tuning import trial

    genuine = trial.train_trial

    def train_trial(config: dict[str, Any], trainer: Any) -> None:
        began = time.time()
        try:
            genuine(config, trainer)
        finally:
            note(log, began)

    return train_trial


def overhead(log: Path, began: float) -> tuple[float, float, float]:
    """(overhead as a share, mean own time in s, wall time in s); each slot counts from the call to its last trial's end."""
    spans = sorted(json.loads(line) for line in log.read_text().splitlines())
    free = [began] * SLOTS
    idle = 0.0
    for start, end in spans:
        slot = min(range(SLOTS), key=lambda place: free[place])
        idle += max(start - free[slot], 0.0)
        free[slot] = end
    own = sum(end - start for start, end in spans)
    return idle / own, own / len(spans), max(free) - began


def main() -> None:
    """Print the three, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--trial-s", type=float, default=60.0)
    arguments = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "platform")}
    sys.path.insert(0, str(ROOT / "platform"))
    import ray
    from ray import tune

    from longhaul.recipe.load import parse_sweep
    from longhaul.tuning import sweep
    from longhaul.tuning.sweep_plan import plan

    ray.init(address="local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="longhaul-overhead-") as scratch:

        def longhaul(name: str, steps: int, trials: int) -> tuple[float, float, float]:
            log = Path(scratch) / f"{name}.log"
            sweep.train_trial = timed_trial(str(log))
            planned = plan(parse_sweep(recipe(name, steps, trials)), scratch, name, folder=Path.cwd())
            began = time.time()
            sweep.run(planned)
            return overhead(log, began)

        def peer(name: str, steps: int, trials: int, *, reuse: bool) -> tuple[float, float, float]:
            log = Path(scratch) / f"{name}.log"
            planned = plan(parse_sweep(recipe(name, steps, 1)), scratch, name, folder=Path.cwd())
            space = {"seed": tune.grid_search(list(range(trials))), "steps": steps, "recipe": planned.state.cells[0].recipe}
            began = time.time()
            tune.Tuner(
                tune.with_resources(plain, {"CPU": 1}),
                param_space={**space, "log": str(log)},
                tune_config=tune.TuneConfig(reuse_actors=reuse),
                run_config=tune.RunConfig(name=name, storage_path=scratch, verbose=0),
            ).fit()
            return overhead(log, began)

        _, probe_s, _ = longhaul("probe", 40, 2)
        _, longer_s, _ = longhaul("longer", 200, 2)
        steps = max(int(arguments.trial_s / ((longer_s - probe_s) / 160)) // VALIDATIONS, 1) * VALIDATIONS
        print(f"{arguments.trials} trials of {steps} steps, {SLOTS} at a time")
        found = {
            "longhaul sweep": longhaul("ours", steps, arguments.trials),
            "plain Ray Tune": peer("plain", steps, arguments.trials, reuse=False),
            "plain Ray Tune, reuse_actors": peer("reuse", steps, arguments.trials, reuse=True),
        }
        ours = found["longhaul sweep"][0]
        for name, (share, own_s, wall_s) in found.items():
            ratio = f"{share / ours:.2f} x ours" if ours else ""
            print(f"{name:30} overhead {share:6.2%} of {own_s:5.1f} s a trial, {wall_s:5.0f} s in all  {ratio}")


if __name__ == "__main__":
    main()
