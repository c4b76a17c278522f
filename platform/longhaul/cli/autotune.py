"""`longhaul autotune`: what the rule makes of a number of samples, and how long that will take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from longhaul.cli.recipe import Overrides
from longhaul.errors import UserError

if TYPE_CHECKING:
    from longhaul.recipe import Recipe
    from longhaul.tuning.autotune import Tuned

_TITLES = {
    "training.epochs": "epochs",
    "data.folds": "folds (0: one split)",
    "training.global_batch": "batch size",
    "training.optimizer.lr": "learning rate",
    "training.early_stopping.patience": "early-stop patience (validations)",
}


def autotune(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe whose data are counted and whose model is timed.", show_default=False)
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Number of labelled samples, instead of counting a recipe's.")] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
) -> None:
    """Show what auto-tune chooses from the number of labelled samples: epochs, folds, batch, learning rate, patience.

    With a recipe it counts the tiles, times a few steps of the model on this machine, and tells the estimated time. What --set
    gives wins over the rule, field by field. `longhaul crossval --auto-tune` trains with exactly these values.

    Example: longhaul autotune --samples 240

    Example: longhaul autotune jobs/recipes/detection/wifi_bluetooth_small.yaml --set training.epochs=20
    """
    from longhaul.tuning.autotune import autotune as rule

    if (recipe is None) == (samples is None):
        raise UserError("autotune: give a recipe, or --samples", "For example: longhaul autotune --samples 240")
    console = Console(highlight=False)
    if recipe is None:
        assert samples is not None
        console.print(table(rule(samples), None))
        return
    tuned, resolved = tune(recipe, overrides)
    console.print(table(tuned, resolved))
    console.print(estimate(resolved, 1))


def tune(recipe: Path, overrides: list[str]) -> tuple[Tuned, Recipe]:
    """The rule for the recipe's number of samples, and the recipe with it; `overrides` win."""
    from longhaul.recipe import load
    from longhaul.recipe.paths import anchored
    from longhaul.signals.tile_folder import read_tiles
    from longhaul.tuning.autotune import autotune as rule

    plain = anchored(load(recipe, overrides), Path.cwd())
    if plain.data.kind != "spectrograms":
        raise UserError(f"data.kind {plain.data.kind}: auto-tune is the detectors' rule", "Give a recipe of tiles (spectrograms)")
    tuned = rule(len(read_tiles(Path(plain.data.root).expanduser())))
    return tuned, anchored(load(recipe, tuned.overrides(overrides, plain.training.micro_batch)), Path.cwd())


def table(tuned: Tuned, recipe: Recipe | None) -> Table:
    """The rule's values, and beside them what the recipe uses."""
    shown = Table("", "rule", *(["used"] if recipe else []), title=f"auto-tune for {tuned.samples} labelled samples")
    used = {} if recipe is None else _used(recipe)
    for path, value in tuned.fields().items():
        mine = used.get(path)
        text = f"{mine:g}" if isinstance(mine, int | float) else str(mine)
        told = text if mine == value else f"[yellow]{text}[/] (given)"
        shown.add_row(_TITLES[path], f"{value:g}", *([told] if recipe else []))
    return shown


def _used(recipe: Recipe) -> dict[str, object]:
    training = recipe.training
    return {
        "training.epochs": training.epochs if training.epochs is not None else str(training.length),
        "data.folds": getattr(recipe.data, "folds", 0),
        "training.global_batch": training.global_batch,
        "training.optimizer.lr": training.optimizer.lr,
        "training.early_stopping.patience": training.early_stopping.patience if training.early_stopping else None,
    }


def estimate(recipe: Recipe, parallel: int) -> str:
    """One line: the estimated time, from seconds a sample measured here."""
    from longhaul.tuning.estimate import measure_cost

    cost, folds = measure_cost(recipe), getattr(recipe.data, "folds", 0)
    parallel = min(parallel, max(folds, 1))
    epochs = recipe.training.length.samples(global_batch=recipe.training.global_batch, epoch_samples=cost.train) / cost.train
    total = cost.total_s(epochs, folds=folds, workers=recipe.scaling.most, parallel=parallel)
    what = f"{folds} folds, {parallel} at a time" if folds > 1 else "one split"
    return (
        f"estimated {_duration(total)} of training for {what}: {cost.train_s:.3g} s a sample measured on {cost.device}, "
        f"{cost.train} to train on, {epochs:g} epochs; early stopping makes it shorter, start-up and a busy machine longer"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
