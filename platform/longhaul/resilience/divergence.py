"""Loss spikes: how one is told from noise, and the ladder of what is done about it.

A spike is a loss or gradient norm that is not finite, or a loss more than six standard deviations above the mean of the last
accepted ones, in linear and in log scale. One scale is not enough: late in training losses are small and skewed, and a hard
batch is far out in linear scale alone; early they fall steeply, and the deviation covers the fall.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from pydantic import BaseModel, ConfigDict

SpikeKind = Literal["nonfinite", "sigma"]

_WINDOW, _ARMED = 64, 32
_CLIP_FACTOR, _CLIP_FIRST, _RATE_FACTOR = 0.6, 1.0, 0.5  # gradient norm 0.5 -> 0.3; learning rate halved


class Spike(BaseModel):
    """Step number `step` is not sound; `sigmas` is how far its loss lies above the mean, where that can be said."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # JSON has no NaN, and a NaN must come back as one

    step: int
    loss: float
    kind: SpikeKind
    sigmas: float | None = None

    def __str__(self) -> str:
        far = f", {self.sigmas:.1f} standard deviations above the last {_WINDOW}" if self.sigmas is not None else ""
        return f"step {self.step}: the training loss is {self.loss:.6g}{far}"


class LossMonitor(BaseModel):
    """Judges each step's loss by those before it; a spike's own loss is not remembered.

    Attributes:
        sigma: how many standard deviations are too many.
        losses: the last accepted ones, oldest first.
    """

    sigma: float = 6.0
    losses: list[float] = []

    def update(self, step: int, loss: float, grad_norm: float | None) -> Spike | None:
        """Take the next step's mean loss and gradient norm (None where it is not known); a `Spike` if it is one."""
        if not math.isfinite(loss) or (grad_norm is not None and not math.isfinite(grad_norm)):
            return Spike(step=step, loss=loss, kind="nonfinite")
        if len(self.losses) >= _ARMED:
            sigmas = _sigmas(loss, self.losses)
            if all(loss_ > 0 for loss_ in [loss, *self.losses]):
                sigmas = min(sigmas, _sigmas(math.log(loss), [math.log(former) for former in self.losses]))
            if sigmas > self.sigma:
                return Spike(step=step, loss=loss, kind="sigma", sigmas=sigmas)
        self.losses = [*self.losses[-_WINDOW + 1 :], loss]
        return None


class Decision(BaseModel):
    """What to do about a spike.

    Attributes:
        probe: steps whose samples are tried one by one when training comes to them again.
        exclude_batch: leave out the whole batch of the spike's step.
        clip_norm: from now on, where it changes.
        rate_factor: on the learning rate, from now on.
        give_up: end the run.
        reason: in one sentence.
    """

    probe: tuple[int, ...] = ()
    exclude_batch: bool = False
    clip_norm: float | None = None
    rate_factor: float = 1.0
    give_up: bool = False
    reason: str


class Remedies(BaseModel):
    """What has been done so far, and what comes next.

    Attributes:
        rollbacks: how many there were.
        step: of the last spike.
        times: how often in a row that same step spiked.
        clip_norm: in force, where it was lowered.
        lowered: how many of the two remedies have been used.
        spike, decision: the last ones; the steps to try leave the decision as they are tried.
    """

    rollbacks: int = 0
    step: int = -1
    times: int = 0
    clip_norm: float | None = None
    lowered: int = 0
    spike: Spike | None = None
    decision: Decision | None = None

    def decide(self, spike: Spike, *, clip_norm: float | None, limit: int) -> Decision:
        """Take one more spike in.

        Args:
            spike: the spike.
            clip_norm: the recipe's.
            limit: after how many rollbacks the remedies begin.
        """
        self.spike = spike
        self.decision = self._decide(spike, clip_norm, limit)
        return self.decision

    def probes(self, step: int) -> bool:
        """Whether the samples of `step` are to be tried before it is taken; said once."""
        if self.decision is None or step not in self.decision.probe:
            return False
        self.decision = self.decision.model_copy(update={"probe": tuple(s for s in self.decision.probe if s != step)})
        return True

    def found(self) -> None:
        """Samples were to blame and are left out: a spike near by is another one."""
        self.step, self.times = -1, 0

    def _decide(self, spike: Spike, clip_norm: float | None, limit: int) -> Decision:
        self.rollbacks += 1
        # A NaN gradient shows in the loss one step later, and what is done may move it: near is the same.
        again = self.step >= 0 and abs(spike.step - self.step) <= 1
        self.times, self.step = (self.times + 1 if again else 1), spike.step
        if self.times >= 3 or self.rollbacks > limit:
            return self._lower(spike, clip_norm)
        if self.times == 2:
            return Decision(exclude_batch=True, probe=(spike.step,), reason=f"{spike}, again: its whole batch is left out")
        steps = (spike.step - 1, spike.step) if spike.kind == "nonfinite" else (spike.step,)
        return Decision(probe=steps, reason=f"{spike}: its samples are tried one by one")

    def _lower(self, spike: Spike, clip_norm: float | None) -> Decision:
        self.lowered += 1
        self.times = 0
        if self.lowered == 1:
            former = self.clip_norm or clip_norm
            self.clip_norm = _CLIP_FIRST if former is None else former * _CLIP_FACTOR
            return Decision(clip_norm=self.clip_norm, reason=f"{spike}: the gradient's norm is clipped at {self.clip_norm:.3g}")
        if self.lowered == 2:
            return Decision(rate_factor=_RATE_FACTOR, reason=f"{spike}: the learning rate is halved")
        return Decision(give_up=True, reason=f"{spike}; samples were left out, gradient norm and rate lowered, and it came again")


def _sigmas(value: float, former: list[float]) -> float:
    spread = statistics.stdev(former)
    return (value - statistics.fmean(former)) / max(spread, 1e-12)
