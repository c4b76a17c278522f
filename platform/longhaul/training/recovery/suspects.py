"""Which samples of a batch are to blame for a spike: each is tried on its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from longhaul.data.samples import Batch
from longhaul.resilience.divergence import SpikeKind, Suspect
from longhaul.training.checkpoints.randomness import random_state, restore_random_state
from longhaul.training.engine.engine import Engine, to_device
from longhaul.training.ranks import Ranks
from longhaul.workloads import Workload

_SIGMAS, _TIMES = 6.0, 5.0
_TO_SIGMA = 1.4826  # of the median absolute deviation of a Gaussian


def find(
    workload: Workload,
    engine: Engine,
    micro_batches: Sequence[Batch],
    ranks: Ranks,
    kind: SpikeKind,
    tick: Callable[[], None] = lambda: None,
) -> list[Suspect]:
    """The offending samples in the step's batch, of all ranks, on all ranks, by index.

    Each sample's loss and gradient are computed in evaluation mode, as batch norm must not see a single sample; weights,
    buffers, gradients, random states and modes are as before afterwards. Where weights are sharded (ZeRO 3) every rank makes
    the same number of forward passes, and the gradient, which would need collectives of its own, is left out.

    Args:
        workload: its loss.
        engine: with the weights from before the spike's step.
        micro_batches: this rank's share of the step; each holds `index` (N,).
        ranks: who shares the step.
        kind: `nonfinite` looks for a loss or gradient that is not finite, `sigma` also for a loss far above the batch's median.
        tick: called after every sample: it may take a while.

    Returns:
        None of them where all are broken: it is the weights then, and no sample is to blame.
    """
    parameters = [p for p in engine.module.parameters() if p.requires_grad and not hasattr(p, "ds_id")]
    tried: list[tuple[int, float, str]] = []
    with _as_it_was(engine.module):
        engine.module.eval()
        for batch in micro_batches:
            for place in range(len(batch["index"])):
                single = to_device({name: value[place : place + 1] for name, value in batch.items()}, ranks.device)
                tried.append((int(batch["index"][place]), *_try(workload, engine, single, parameters)))
                tick()
    everyone = [Suspect(index=index, loss=loss, reason=reason) for share in ranks.gather(tried) for index, loss, reason in share]
    broken = [one for one in everyone if one.reason]
    found = [] if len(broken) == len(everyone) else broken
    if kind == "sigma" and not broken:
        found = _far_out(everyone)
    return sorted(found, key=lambda one: one.index)


def _try(workload: Workload, engine: Engine, single: Batch, parameters: list[nn.Parameter]) -> tuple[float, str]:
    """A sample's loss, and what is not finite about it."""
    with torch.set_grad_enabled(bool(parameters)), engine.autocast():
        loss = workload.loss(engine.module, single)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value, f"its loss is {value}"
    if parameters:
        # Not backward(): that would call the hooks that reduce gradients over ranks, and fill `.grad`.
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None):
            return value, "its gradient is not finite"
    return value, ""


def _far_out(everyone: list[Suspect]) -> list[Suspect]:
    """Those whose loss is more than 6 robust standard deviations, and 5 times, above the median."""
    losses = torch.tensor([one.loss for one in everyone], dtype=torch.float64)
    middle = losses.median()
    spread = _TO_SIGMA * (losses - middle).abs().median()
    far = ((losses > middle + _SIGMAS * spread) & (losses > _TIMES * middle)).tolist()
    reason = f"its loss is more than {_TIMES:g} times the batch's median of {float(middle):.4g}"
    return [one.model_copy(update={"reason": reason}) for one, is_far in zip(everyone, far, strict=True) if is_far]


@contextlib.contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Put back modes, buffers and random states afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    state = random_state()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)
        restore_random_state(state)
