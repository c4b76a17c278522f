"""One phase of a run as the training loop sees it: its number, and what it takes over from the phase before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from longhaul.errors import UserError
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import Weights
from longhaul.training.progress import Progress, fresh_progress
from longhaul.workloads import Workload

_TOLD = 3


@dataclass(frozen=True)
class Former:
    """The end of the phase before.

    Attributes:
        progress: where it ended.
        epochs: that the run has gone through by then.
        excluded: ids of the samples that were left out.
        weights: to begin with.
    """

    progress: Progress
    epochs: float
    excluded: Sequence[str]
    weights: Weights


@dataclass(frozen=True)
class Stage:
    """A phase: the `last` one measures the test split; `former` is there for one that has no checkpoint yet."""

    number: int = 0
    last: bool = True
    former: Former | None = None

    def progress(self, recipe: Recipe, workload: Workload) -> Progress:
        """The beginning of the phase: position, schedule and statistics anew, steps and samples counted on."""
        fresh = fresh_progress(recipe, workload)
        fresh.phase = self.number
        if self.former is not None:
            before, train = self.former.progress, workload.splits.train
            fresh.step = fresh.first_step = before.step
            fresh.first_samples, fresh.first_epoch = before.samples, self.former.epochs
            fresh.left_out = sorted(self.former.excluded)
            left_out = set(fresh.left_out)
            fresh.excluded = sorted({*fresh.excluded, *(i for i, name in enumerate(train.ids) if name in left_out)})
            fresh.tracker_runs = before.tracker_runs
            bounds = {"least_s": fresh.cadence.least_s, "most_s": fresh.cadence.most_s}
            fresh.cadence = before.cadence.model_copy(update=bounds)
        return fresh

    def model(self, workload: Workload) -> nn.Module:
        """The network that the phase begins with.

        Raises:
            UserError: the weights of the phase before do not fit it.
        """
        return workload.build_model() if self.former is None else with_weights(workload, self.former.weights)


WHOLE = Stage()
"""A run without phases."""


def with_weights(workload: Workload, weights: Weights) -> nn.Module:
    """The workload's network with weights from a checkpoint.

    Raises:
        UserError: a tensor is missing or has another shape; names it and both shapes.
    """
    model = workload.build_model(initial=False)
    want = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    have = {name: tuple(value.shape) for name, value in weights.state.items()}
    odd = [
        f"{name} is {have.get(name, 'not there')} in the checkpoint and {want.get(name, 'not there')} in the network"
        for name in [*want, *(name for name in have if name not in want)]
        if have.get(name) != want.get(name)
    ]
    if odd:
        more = f", and {len(odd) - _TOLD} more" if len(odd) > _TOLD else ""
        fix = "Take a network that every phase's resolution and classes fit, or leave those as they were"
        raise UserError(f"the weights of {weights.checkpoint} do not fit: {'; '.join(odd[:_TOLD])}{more}", fix)
    model.load_state_dict(weights.state)
    return model
