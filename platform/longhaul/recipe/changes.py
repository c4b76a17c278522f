"""Changes to the recipe of a run that has begun: what may be changed, and what its checkpoints forbid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longhaul.errors import UserError
from longhaul.recipe.diff import Difference, diff
from longhaul.recipe.load import dump, parse
from longhaul.recipe.schema import Recipe

_NEW_RUN = "Train a new run under another --name"
_OPTIMIZER = "the optimizer's state in its checkpoints is of the one that it began with"
_FIXED = {
    "name": "it says which run this is",
    "seed": "initial weights and the order of samples follow from it",
    "workload": "losses and metrics before and after would not be of the same kind",
    "model": "the weights in its checkpoints are of the model that it began with",
    "data.kind": "its position in the data is one in the data that it began with",
    "data.root": "its position in the data is one in the data that it began with",
    "data.share": "its position in the data is one in the data that it began with",
    "data.validation_share": "training and validation samples would mix",
    "data.folds": "training and validation samples would mix",
    "data.fold": "training and validation samples would mix",
    "data.test_share": "training and test samples would mix",
    "data.resolution": "losses and metrics before and after would not be of the same task",
    "data.excluded": "samples left out from the start have been seen by its weights",
    "phases": "its checkpoints are of a run without phases, or of one with them",
    "training.engine": "checkpoints of plain torch and of each ZeRO stage hold the optimizer's state in forms of their own",
    "training.optimizer.name": _OPTIMIZER,
    "training.optimizer.weight_decay": _OPTIMIZER,
    "training.optimizer.momentum": _OPTIMIZER,
    "training.optimizer.betas": _OPTIMIZER,
}
_PHASE = re.compile(r"phases\.(\d+)\.(.+)")


def changed(recipe: Recipe, changes: Sequence[str], *, source: str, begun: bool = True) -> Recipe:
    """The recipe of a run, with changes such as `training.epochs=220`.

    Args:
        recipe: as it was saved with the run.
        changes: `field=value`; the value is read as YAML.
        source: names the saved recipe in errors.
        begun: the run has checkpoints, and they forbid some changes.

    Raises:
        UserError: a change gives no valid recipe, or the checkpoints forbid it.
    """
    after = parse(dump(recipe), source=f"{source} with --change", overrides=changes, option="--change")
    for difference in diff(recipe, after) if begun else ():
        phase = _PHASE.fullmatch(difference.field)
        if phase and int(phase[1]) >= len(recipe.phases) > 0:
            continue  # a further phase is another stretch, with whatever it sets
        reason = _phase_reason(phase[2], difference) if phase else _reason(difference)
        if reason is not None:
            told = f"{difference.field}: {difference.before!r} -> {difference.after!r}"
            raise UserError(f"--change {told}: cannot change in a run that has checkpoints; {reason}", _NEW_RUN)
    return after


def fields(changes: Sequence[str]) -> tuple[str, ...]:
    """The fields that `changes` name."""
    return tuple(change.partition("=")[0].strip() for change in changes)


def covers(named: Sequence[str], field: str) -> bool:
    """Whether `field` is one of those named, or lies below one."""
    return any(field == name or field.startswith(f"{name}.") for name in named)


def _reason(difference: Difference) -> str | None:
    """Why a field may not change; None if it may."""
    field, before, after = difference
    if field == "training.ema_decay" and None in (before, after):
        return "its checkpoints hold a moving average of the weights from the start, or none"
    if field == "training.precision" and "fp16" in (before, after):
        return "its checkpoints hold a loss scale from the start, or none"
    return next((why for fixed, why in _FIXED.items() if covers([fixed], field)), None)


def _phase_reason(field: str, difference: Difference) -> str | None:
    if field == "name":
        return "its checkpoints count phases by their places"
    return _reason(difference._replace(field=field.removeprefix("set."))) if field.startswith("set.") else None
