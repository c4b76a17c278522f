"""A torch module as an engine: the reference, and on a GPU without TensorRT the next best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longhaul.engines.device_queue import DeviceQueue, QueuedEngine
from longhaul.engines.inference import EngineClosed, only_input
from longhaul.workloads.base import Signature


class TorchEngine(QueuedEngine):
    """A torch module in eval mode.

    Args:
        module: its `forward` takes the input and returns a tensor, or a tuple of them in the signature's order.
        signature: what the module takes and gives.
        max_batch: the most samples that one call takes, where `batches` is empty.
        device: where to run it; the module is moved there.
        batches: pad to these batch sizes, which on a GPU then run as CUDA graphs; empty: any size, never padded.
        graphs: no CUDA graphs if False.
    """

    kind = "torch"

    def __init__(
        self,
        module: nn.Module,
        signature: Signature,
        *,
        max_batch: int,
        device: str = "cpu",
        batches: Sequence[int] = (),
        graphs: bool = True,
    ) -> None:
        where = torch.device(device)
        self._module: nn.Module | None = module.eval().to(where)
        self._outputs = [output.name for output in signature.outputs]
        self._queue = DeviceQueue(
            f"{type(module).__name__} by torch",
            dict.fromkeys(batches or (max_batch,), self._compute),
            only_input(signature),
            where,
            any_size=not batches,
            graphs=graphs,
        )

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._queue.close()
        self._module = None

    def _compute(self, given: Tensor) -> Mapping[str, Tensor]:
        if self._module is None:
            raise EngineClosed
        answer = self._module(given)
        tensors = (answer,) if isinstance(answer, Tensor) else tuple(answer)
        return dict(zip(self._outputs, tensors, strict=True))
