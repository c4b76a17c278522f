"""Which recipe the weights of a run were trained by."""

from __future__ import annotations

from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.resilience.checkpoint import CheckpointStore, newest_phase
from longhaul.resilience.run_directory import RunDirectory


def trained_recipe(run: RunDirectory) -> Recipe:
    """The recipe of the phase whose weights `load_weights` gives: the newest with a checkpoint, else the last.

    Raises:
        UserError: what a phase sets gives no recipe.
    """
    phases = resolve(run.recipe())
    if len(phases) == 1:  # without asking a store for its checkpoints
        return phases[0]
    entries = CheckpointStore(run).entries()
    return phases[newest_phase(entries)[0].phase if entries else -1]
