"""What a recipe says about the learning rate over time, one section a schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longhaul.recipe.duration import Duration, duration
from longhaul.recipe.section import NonNegative, Number, Positive, PositiveFloat, Section, Share


class _Schedule(Section):
    warmup: Duration = duration("0 epochs")
    """Linear rise from 1 % of the rate to all of it, before the schedule proper."""


class ConstantSchedule(_Schedule):
    """The optimizer's rate throughout."""

    name: Literal["constant"] = "constant"


class CosineSchedule(_Schedule):
    """Half a cosine from the optimizer's rate down to `floor` of it at the end of the run."""

    name: Literal["cosine"]
    floor: Share = 0.0
    """The last rate as a share of the first."""


class StepSchedule(_Schedule):
    """Times `gamma` after every `every`."""

    name: Literal["step"]
    every: Duration = duration("10 epochs")
    """Length of one stair."""
    gamma: PositiveFloat = 0.1
    """Factor at each stair."""


class MultiStepSchedule(_Schedule):
    """Times `gamma` at each of the `milestones`."""

    name: Literal["multistep"]
    milestones: tuple[Duration, ...]
    """When, from the start of the run."""
    gamma: PositiveFloat = 0.1
    """Factor at each milestone."""


class ExponentialSchedule(_Schedule):
    """Times `gamma` every epoch, in equal factors a step."""

    name: Literal["exponential"]
    gamma: PositiveFloat = 0.95
    """Factor an epoch."""


class PlateauSchedule(_Schedule):
    """Times `gamma` when the goal metric has not improved for `patience` validations."""

    name: Literal["plateau"]
    patience: Positive = 3
    """Validations without improvement before the rate falls."""
    gamma: PositiveFloat = 0.1
    """Factor at each fall."""
    min_delta: NonNegative = 1e-4
    """The least change of the metric that counts as improvement."""


class OneCycleSchedule(Section):
    """Up to `max_lr` and down to nearly nothing in one cycle over the run (it brings its own warm-up)."""

    name: Literal["onecycle"]
    max_lr: PositiveFloat
    """The peak."""
    rise: Annotated[float, Field(gt=0, lt=1), Number] = 0.3
    """Share of the run spent rising."""
    start_divisor: PositiveFloat = 25.0
    """First rate = max_lr / this."""
    end_divisor: PositiveFloat = 1e4
    """Last rate = first rate / this."""


ScheduleSection = Annotated[
    ConstantSchedule
    | CosineSchedule
    | StepSchedule
    | MultiStepSchedule
    | ExponentialSchedule
    | PlateauSchedule
    | OneCycleSchedule,
    Field(discriminator="name"),
]


class EarlyStopping(Section):
    """End the run when the metric has stopped improving."""

    patience: Positive = 10
    """Validations without improvement before the run ends."""
    warmup: Duration = duration("0 epochs")
    """Nothing is counted before this point."""
    metric: str | None = None
    """A validation metric such as `val/top1`; left out, the workload's own goal."""
    direction: Literal["max", "min"] | None = None
    """Which way is better; needed with `metric`, left out with the workload's goal."""
    min_delta: NonNegative = 0.0
    """The least change that counts as improvement."""

    @model_validator(mode="after")
    def _metric_needs_direction(self) -> EarlyStopping:
        if (self.metric is None) != (self.direction is None):
            raise ValueError("metric and direction go together; give both, or neither for the workload's own goal")
        return self
