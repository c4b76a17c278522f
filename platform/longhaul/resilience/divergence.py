"""Loss spikes: how one is told from noise, and the ladder of what is done about it.

A spike is a loss or gradient norm that is not finite, or a loss more than six standard deviations above the mean of the last
accepted ones, in linear and in log scale. One scale is not enough: late in training losses are small and skewed, and a hard
batch is far out in linear scale alone; early they fall steeply, and the deviation covers the fall.

The ladder: try the samples of the step one by one; where none is to blame and it comes again, leave out the whole batch; then
lower the gradient's norm, then the learning rate; then end. Rollbacks that find broken samples do not count against the
bound, but they are not without end either: data that are broken throughout are for a person to look at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

SpikeKind = Literal["nonfinite", "sigma"]

_WINDOW, _ARMED = 64, 32
_LEAST_SPREAD = 1e-3  # relative: losses that are all but equal have no spread to measure by
_LEAST_LOSS = 1e-8  # a loss may be exactly 0, which has no logarithm and no relative spread
_CLIP_FACTOR, _CLIP_FIRST, _RATE_FACTOR = 0.6, 1.0, 0.5  # gradient norm 0.5 -> 0.3; learning rate halved
_BROKEN_DATA = 10  # times the bound: so many rollbacks in all, however many of them found samples to blame
_FORGIVEN = 1000  # steps without a spike after which the former ones no longer count


class Spike(BaseModel):
    """Step number `step` is not sound; `sigmas` is how far its loss lies above the mean, where that can be said."""

    model_config = ConfigDict(ser_json_inf_nan="strings")  # JSON has no NaN, and a NaN must come back as one

    step: int
    loss: float
    kind: SpikeKind
    grad_norm: float | None = None
    sigmas: float | None = None

    def __str__(self) -> str:
        if self.grad_norm is not None and math.isfinite(self.loss) and not math.isfinite(self.grad_norm):
            return f"step {self.step}: the gradient's norm is {self.grad_norm:.6g}"
        far = f", {self.sigmas:.1f} standard deviations above the last {_WINDOW}" if self.sigmas is not None else ""
        return f"step {self.step}: the training loss is {self.loss:.6g}{far}"


class Suspect(BaseModel):
    """A sample that is to blame: `index` in its set, its own `loss` where it was tried, and the `reason` in a few words."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    index: int
    loss: float | None
    reason: str


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
            return Spike(step=step, loss=loss, kind="nonfinite", grad_norm=grad_norm)
        if len(self.losses) >= _ARMED:
            sigmas = _sigmas(loss, self.losses, _LEAST_SPREAD * abs(statistics.fmean(self.losses)) + _LEAST_LOSS)
            if sigmas > self.sigma and loss >= 0 and min(self.losses) >= 0:
                sigmas = min(sigmas, _sigmas(_log(loss), [_log(former) for former in self.losses], _LEAST_SPREAD))
            if sigmas > self.sigma:
                return Spike(step=step, loss=loss, kind="sigma", grad_norm=grad_norm, sigmas=sigmas)
        self.losses = [*self.losses[-_WINDOW + 1 :], loss]
        return None


class Decision(BaseModel):
    """What to do about a spike.

    Attributes:
        probe: steps whose samples are tried one by one when training comes to them again.
        exclude_batch: not tried, but left out, all of them.
        clip_norm: from now on, where it changes.
        rate_factor: on the learning rate, one more from now on.
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
        unexplained: those among them that found no sample to blame.
        step: of the last spike; -1 where it is settled.
        times: how often in a row that same step spiked.
        clip_norm: in force, where it was lowered.
        rate_factor: in force, on the learning rate.
        lowered: how many of the two remedies have been used.
        spike, decision: the last ones; the steps to try leave the decision as they are tried.
        explained: whether samples were found to blame for the last one.
        spike_before: step of the last spike, settled or not.
    """

    rollbacks: int = 0
    unexplained: int = 0
    step: int = -1
    times: int = 0
    clip_norm: float | None = None
    rate_factor: float = 1.0
    lowered: int = 0
    spike: Spike | None = None
    decision: Decision | None = None
    explained: bool = False
    spike_before: int | None = None

    def decide(self, spike: Spike, *, clip_norm: float | None, limit: int) -> Decision:
        """Take one more spike in.

        Args:
            spike: the spike.
            clip_norm: the recipe's.
            limit: after how many rollbacks that found nothing the remedies begin.
        """
        self.spike, self.explained = spike, False
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
        self.unexplained -= 0 if self.explained else 1  # both steps of one decision may find some
        self.explained = True

    def _decide(self, spike: Spike, clip_norm: float | None, limit: int) -> Decision:
        if self.spike_before is not None and spike.step > self.spike_before + _FORGIVEN:
            self.rollbacks = self.unexplained = self.lowered = 0  # it has gone well for long: that was another story
        self.spike_before = spike.step
        self.rollbacks += 1
        self.unexplained += 1
        # A NaN gradient shows in the loss one step later, and what is done may move it: near is the same.
        again = self.step >= 0 and abs(spike.step - self.step) <= 1
        self.times, self.step = (self.times + 1 if again else 1), spike.step
        if self.rollbacks > _BROKEN_DATA * max(limit, 1):
            blame = "nearly all of them found samples to blame: the data are not in order"
            return Decision(give_up=True, reason=f"{spike}; it is rollback {self.rollbacks}, and {blame}")
        if self.unexplained > limit:
            return self._lower(spike, clip_norm)
        if self.times == 1:
            steps = (spike.step - 1, spike.step) if spike.kind == "nonfinite" else (spike.step,)
            return Decision(probe=steps, reason=f"{spike}: its samples are tried one by one")
        if self.times == 2:
            return Decision(exclude_batch=True, probe=(spike.step,), reason=f"{spike}, again: its whole batch is left out")
        if self.times == 3 and spike.kind == "nonfinite" and spike.grad_norm is None:  # the step before may be the one
            text = f"{spike}, again: the whole batch before it is left out"
            return Decision(exclude_batch=True, probe=(spike.step - 1,), reason=text)
        return self._lower(spike, clip_norm)

    def _lower(self, spike: Spike, clip_norm: float | None) -> Decision:
        self.lowered += 1
        if self.lowered == 1:
            former = self.clip_norm or clip_norm
            self.clip_norm = _CLIP_FIRST if former is None else former * _CLIP_FACTOR
            return Decision(clip_norm=self.clip_norm, reason=f"{spike}: the gradient's norm is clipped at {self.clip_norm:.3g}")
        if self.lowered == 2:
            self.rate_factor *= _RATE_FACTOR
            return Decision(rate_factor=_RATE_FACTOR, reason=f"{spike}: the learning rate is halved")
        return Decision(give_up=True, reason=f"{spike}; samples were left out, gradient norm and rate lowered, and it came again")


def _log(loss: float) -> float:
    return math.log(max(loss, _LEAST_LOSS))


def _sigmas(value: float, former: Sequence[float], least_spread: float) -> float:
    """How many standard deviations `value` lies above the mean of the `former` ones."""
    mean = statistics.fmean(former)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in former) / (len(former) - 1))
    return (value - mean) / max(spread, least_spread)
