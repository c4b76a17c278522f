"""Which samples of a batch are to blame for a spike: each is tried on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longhaul.data.samples import Batch
from longhaul.resilience.divergence import SpikeKind
from longhaul.training.engine import Engine, to_device
from longhaul.training.ranks import Ranks
from longhaul.workloads import Workload

_SIGMAS, _TIMES = 6.0, 5.0
_TO_SIGMA = 1.4826  # of the median absolute deviation of a Gaussian


def find(workload: Workload, engine: Engine, micro_batches: Sequence[Batch], ranks: Ranks, kind: SpikeKind) -> list[int]:
    """The indices of the offending samples in the step's batch, of all ranks, on all ranks.

    Each sample's loss and gradient are computed in evaluation mode, as batch norm must not see a single sample; buffers,
    gradients, random states and the mode are as before afterwards. Where weights are sharded (ZeRO 3) every rank makes the
    same number of forward passes, and the gradient, which would need collectives of its own, is left out.

    Args:
        workload: its loss.
        engine: with the weights from before the spike's step.
        micro_batches: this rank's share of the step; each holds `index` (N,).
        ranks: who shares the step.
        kind: `nonfinite` looks for a loss or gradient that is not finite, `sigma` for a loss far above the batch's median.
    """
    module, device = engine.module, ranks.device
    training = module.training
    parameters = [p for p in module.parameters() if p.requires_grad and not hasattr(p, "ds_id")]
    values: list[tuple[int, float, bool]] = []
    module.eval()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for batch in micro_batches:
            for place in range(len(batch["index"])):
                single = to_device({name: value[place : place + 1] for name, value in batch.items()}, device)
                values.append((int(batch["index"][place]), *_try(workload, engine, single, parameters)))
    module.train(training)
    everyone = [value for share in ranks.gather(values) for value in share]
    broken = sorted(index for index, loss, finite in everyone if not finite)
    if kind == "nonfinite" or broken:
        return broken
    losses = torch.tensor([loss for _, loss, _ in everyone], dtype=torch.float64)
    middle = losses.median()
    spread = _TO_SIGMA * (losses - middle).abs().median()
    far = (losses > middle + _SIGMAS * spread) & (losses > _TIMES * middle)
    return sorted(index for (index, _, _), is_far in zip(everyone, far.tolist(), strict=True) if is_far)


def _try(workload: Workload, engine: Engine, single: Batch, parameters: list[torch.nn.Parameter]) -> tuple[float, bool]:
    """A sample's loss, and whether it and its gradient are finite."""
    with torch.set_grad_enabled(bool(parameters)), engine.autocast():
        loss = workload.loss(engine.module, single)
    finite = bool(torch.isfinite(loss))
    if finite and parameters:
        # Not backward(): that would call the hooks that reduce gradients over ranks, and fill `.grad`.
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(loss, parameters, allow_unused=True)
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)
    return float(loss.detach()), finite
