"""How good what a search finds is, and what it costs: random draws, TPE, TPE with early stopping, on real trainings.

    python benchmarks/search_quality.py [--seeds 5] [--trials 24]

Every trial trains a small CNN on the 1,797 digits (8 x 8 pixels, 300 of them to train on) for 9 epochs with AdamW: learning rate,
weight decay and width are searched, the score is the loss on 500 others. Searcher and scheduler are those of a sweep
(`tuning.search`), asked as Ray Tune asks them, by four workers in virtual time, each validation as long as any
other. A sweep's trials are the same in number for each method; its cost is the epochs that it trains, as a share of all.

Prediction, written before the first measurement: TPE ends below random in the median; ASHA costs a third of the epochs and gives
up less than random loses to TPE.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from ray.tune.schedulers import TrialScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn

from longhaul.recipe.sweep import AshaStopping, MedianStopping, NoStopping, SearchSection, StoppingSection
from longhaul.tuning.search.search import make_searcher
from longhaul.tuning.search.stopping import make_scheduler

EPOCHS = 9
WORKERS = 4
SPACE = {
    "lr": {"log_uniform": [1e-5, 1.0]},
    "weight_decay": {"log_uniform": [1e-4, 10.0]},
    "width": {"integer": [2, 24]},
}
METHODS: dict[str, tuple[str, StoppingSection]] = {
    "random": ("random", NoStopping()),
    "random + asha": ("random", AshaStopping(kind="asha", least_epochs=1, reduction=3)),
    "tpe": ("tpe", NoStopping()),
    "tpe + asha": ("tpe", AshaStopping(kind="asha", least_epochs=1, reduction=3)),
    "tpe + median": ("tpe", MedianStopping(kind="median")),
}


@dataclass(frozen=True)
class Digits:
    """Pictures `(N, 1, 8, 8)` and their labels `(N,)`, to train on and to validate on."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, seed: int) -> Digits:
        """300 and 500 of scikit-learn's, drawn by `seed`."""
        bunch = load_digits()
        pictures = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
        labels = torch.tensor(bunch.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        parts = order[:300], order[300:800]
        train, val = ((pictures[part], labels[part]) for part in parts)
        return cls(train, val)


def training(point: dict[str, Any], digits: Digits) -> Iterator[float]:
    """The validation loss after each epoch."""
    torch.manual_seed(0)
    width = point["width"]
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * width, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=point["lr"], weight_decay=point["weight_decay"])
    pictures, labels = digits.train
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels), generator=shuffle).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
        with torch.inference_mode():
            loss = float(nn.functional.cross_entropy(net(digits.val[0]), digits.val[1]))
        yield loss  # outside of the block above, which would go on for whoever trains meanwhile


@dataclass
class Running:
    """One trial that trains: what a scheduler looks at in a trial of Ray Tune, and its best loss so far."""

    key: str
    losses: Iterator[float]
    epoch: int = 0
    best: float = math.inf
    handle: Any = field(init=False)

    def __post_init__(self) -> None:
        self.handle = SimpleNamespace(config={"key": self.key}, trial_id=self.key)


@dataclass(frozen=True)
class Outcome:
    """The best loss that a sweep had found, after each of its epochs."""

    found: list[float]

    @property
    def epochs(self) -> int:
        """That the sweep has trained, over all trials."""
        return len(self.found)


def sweep(kind: str, stopping: StoppingSection, trials: int, seed: int, digits: Digits) -> Outcome:
    """One sweep on four workers, whose validations come in turn."""
    search = SearchSection.model_validate({"kind": kind, "trials": trials, "space": SPACE, "seed": seed, "startup": 8})
    searcher, scheduler = make_searcher(search, "min", []), make_scheduler(stopping, "min", EPOCHS, [])
    running: list[Running] = []
    found: list[float] = []
    drawn = 0
    while True:
        while len(running) < WORKERS and isinstance(point := searcher.suggest(str(drawn)), dict):
            running.append(Running(str(drawn), training(point, digits)))
            scheduler.on_trial_add(None, running[-1].handle)  # type: ignore[no-untyped-call, arg-type]
            drawn += 1
        if not running:
            return Outcome(found)
        trial = running.pop(0)
        loss = next(trial.losses)
        trial.epoch, trial.best = trial.epoch + 1, min(trial.best, loss if math.isfinite(loss) else math.inf)
        found.append(min(trial.best, *found[-1:]) if found else trial.best)
        result = {"epoch": float(trial.epoch), "score": trial.best}
        verdict = scheduler.on_trial_result(None, trial.handle, result)  # type: ignore[arg-type]
        if trial.epoch == EPOCHS or verdict == TrialScheduler.STOP:
            ended = "finished" if trial.epoch == EPOCHS else "stopped"
            searcher.on_trial_complete(trial.key, result | {"ended": ended})
        else:
            searcher.on_trial_result(trial.key, result)
            running.append(trial)


def main() -> None:
    """Print a line for each method: medians over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    whole = asked.trials * EPOCHS
    print(f"{asked.trials} trials of {EPOCHS} epochs, {asked.seeds} seeds, best validation loss: median (worst)")
    print(f"{'':14s} {'at a third of the epochs':>26s} {'at the end':>18s} {'epochs trained':>15s} {'s':>5s}")
    for name, (kind, stopping) in METHODS.items():
        began = time.monotonic()
        outcomes = [sweep(kind, stopping, asked.trials, seed, Digits.load(seed)) for seed in range(asked.seeds)]
        third = [outcome.found[min(whole // 3, outcome.epochs) - 1] for outcome in outcomes]
        end = [outcome.found[-1] for outcome in outcomes]
        share = statistics.fmean(outcome.epochs for outcome in outcomes) / whole
        print(
            f"{name:14s} {statistics.median(third):16.4f} ({max(third):.4f}) {statistics.median(end):9.4f} ({max(end):.4f})"
            f" {share:15.0%} {time.monotonic() - began:5.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
