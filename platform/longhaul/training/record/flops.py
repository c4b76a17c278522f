"""How many floating-point operations training on one sample takes: what model FLOPs utilisation (MFU) is measured with."""

from __future__ import annotations

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from longhaul.workloads import Workload

log = logging.getLogger(__name__)

_SAMPLES = 2  # batch norm refuses to train on one


def flops_per_sample(workload: Workload) -> float | None:
    """Operations of forward and backward for one sample, a multiplication and an addition counted as two.

    Counted by `torch.utils.flop_counter.FlopCounterMode` on the meta device, where nothing is computed or stored; None for a
    model that does not run there.
    """
    sample = workload.splits.train.read(0, None)
    try:
        with torch.device("meta"):
            model = workload.build_model(initial=False).train()
        batch = {name: torch.stack([value] * _SAMPLES).to("meta") for name, value in sample.items()}
        with FlopCounterMode(display=False) as counter:
            workload.loss(model, batch).backward()
    except Exception as error:  # noqa: BLE001 - whatever it raises there: a figure beside the ledger is no reason not to train
        log.info("the model's operations cannot be counted: %s", error)
        return None
    return float(counter.get_total_flops()) / _SAMPLES
