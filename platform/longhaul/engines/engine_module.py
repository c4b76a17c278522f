"""An engine as a torch module, so that a workload measures it as it measures the network it was made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from longhaul.engines.inference import InferenceEngine


class EngineModule(nn.Module):
    """Any number of samples in, by as many calls as that takes; answers are where the input is.

    Args:
        engine: owned by the caller, who closes it.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, *shape) -> the output, or a tuple in the signature's order where there are several."""
        parts = [tuple(self.engine.infer(part).values()) for part in batch.split(self.engine.max_batch)]
        outputs = tuple(torch.from_numpy(np.concatenate(arrays)).to(batch.device) for arrays in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs
