"""Batches of any size through kernels of a few sizes, on a stream of their own: what torch and TensorRT engines share.

On a CPU there is no stream, and all else is the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longhaul.engines import cuda_graph
from longhaul.engines.batch_sizes import smallest_holding
from longhaul.engines.cuda_graph import CapturedKernels, Kernels
from longhaul.engines.inference import Array, EngineClosed, check_batch
from longhaul.workloads.base import TensorSpec


@dataclass
class _Lane:
    """The kernels for one size, with the buffer that they read."""

    kernels: Kernels
    buffer: Tensor
    graph: CapturedKernels | None = None

    def run(self, samples: int) -> Mapping[str, Tensor]:
        return (self.graph or self.kernels)(self.buffer[:samples])


class DeviceQueue:
    """Runs kernels for callers in any thread, who take turns and wait for this stream alone.

    Args:
        label: whose kernels, for the log.
        kernels: batch size -> what computes it. With `any_size` there is one, and its key is the largest size.
        spec: the input.
        device: where the kernels run.
        any_size: the kernels take any number of samples up to the largest size, so nothing is padded.
        graphs: replay kernels of a fixed size as a CUDA graph, from `warm_up` on.
    """

    def __init__(
        self,
        label: str,
        kernels: Mapping[int, Kernels],
        spec: TensorSpec,
        device: torch.device,
        *,
        any_size: bool = False,
        graphs: bool = True,
    ) -> None:
        self._label, self._spec = label, spec
        self._any_size = any_size
        self._graphs = graphs and not any_size and device.type == "cuda"
        self._lock = threading.Lock()
        # A stream of its own: work on the default stream would wait for all others, and they for it.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        dtype = getattr(torch, spec.dtype)
        # Zeros, because padding runs through the network too before the first full batch.
        self._lanes = {
            size: _Lane(one, torch.zeros(size, *spec.shape, dtype=dtype, device=device)) for size, one in kernels.items()
        }
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the zeros
        self.sizes = tuple(sorted(kernels))

    @property
    def max_batch(self) -> int:
        """The most samples that `run` takes."""
        return self.sizes[-1]

    @property
    def captured(self) -> tuple[int, ...]:
        """The sizes that run as a CUDA graph."""
        return tuple(size for size in self.sizes if size in self._lanes and self._lanes[size].graph is not None)

    @torch.inference_mode()
    def run(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`."""
        check_batch(batch, self._spec, self.max_batch)
        source = batch.detach() if isinstance(batch, Tensor) else torch.from_numpy(np.ascontiguousarray(batch))
        # Asked for here, because inside it is this queue's own.
        caller = torch.cuda.current_stream(source.device) if source.is_cuda else None
        with self._lock, self._on_stream():
            if not self._lanes:
                raise EngineClosed
            if caller is not None and self._stream is not None:
                self._stream.wait_stream(caller)
            answers = self._start(source)
            if self._stream is not None:
                self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in answers.items()}

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run every size once and more; capture graphs where they are wanted."""
        with self._lock, self._on_stream():
            if not self._lanes:
                raise EngineClosed
            for size, lane in self._lanes.items():
                for samples in {1, size} if self._any_size else {size}:
                    cuda_graph.warm_up(lane.kernels, lane.buffer[:samples])
                if self._graphs and lane.graph is None and self._stream is not None:
                    lane.graph = cuda_graph.capture(lane.kernels, lane.buffer, self._stream, f"{self._label}, batch {size}")
            if self._stream is not None:
                self._stream.synchronize()

    def close(self) -> None:
        """Wait for the call that runs, then give back graphs, kernels and buffers."""
        with self._lock:
            if self._stream is not None:
                self._stream.synchronize()
            for lane in self._lanes.values():
                if lane.graph is not None:  # before the kernels whose memory it uses
                    lane.graph.reset()
            self._lanes = {}

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Make stream and device the current ones."""
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _start(self, source: Tensor) -> dict[str, Tensor]:
        """Queue the work; the outputs, which are nobody else's, are on the host when the stream is done."""
        samples = len(source)
        size = smallest_holding(samples, self.sizes)
        lane = self._lanes[size]
        lane.buffer[:samples].copy_(source, non_blocking=self._stream is not None)
        outputs = lane.run(samples if self._any_size else size)
        return {name: tensor[:samples].to("cpu", non_blocking=True, copy=True) for name, tensor in outputs.items()}


class QueuedEngine:
    """The part of `InferenceEngine` that a `DeviceQueue` gives: torch and TensorRT add how their kernels come and go."""

    _queue: DeviceQueue

    @property
    def max_batch(self) -> int:
        """See `InferenceEngine`."""
        return self._queue.max_batch

    @property
    def captured(self) -> tuple[int, ...]:
        """The batch sizes that run as a CUDA graph."""
        return self._queue.captured

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`; a CUDA tensor, of this GPU or another, is copied once, on the devices."""
        return self._queue.run(batch)

    def warm_up(self) -> None:
        """See `InferenceEngine.warm_up`."""
        self._queue.warm_up()
