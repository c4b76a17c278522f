"""Kernels of fixed shapes and addresses as a CUDA graph (`torch.cuda.CUDAGraph`): one launch instead of hundreds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Kernels = Callable[[Tensor], Mapping[str, Tensor]]
"""Input (N, *shape) on the device -> outputs, whose kernels are on the current stream and need not be done yet."""

_ROUNDS = 3
_log = logging.getLogger(__name__)
_one_capture = threading.Lock()  # `torch.cuda.graph` allows one at a time in a process


class CapturedKernels:
    """A captured graph, called as the kernels that it was captured from.

    Args:
        graph: captured.
        given: the input at capture; the graph reads this memory whatever it is called with.
        outputs: what the graph writes.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, given: Tensor, outputs: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._given = given
        self._outputs = outputs

    def __call__(self, given: Tensor) -> Mapping[str, Tensor]:
        """See `Kernels`; the outputs are the same tensors each time."""
        assert given.data_ptr() == self._given.data_ptr(), "a graph reads the addresses that it was captured with"
        self._graph.replay()
        return self._outputs

    def reset(self) -> None:
        """Give back the graph's memory; nothing of it may be running."""
        self._graph.reset()


def warm_up(kernels: Kernels, given: Tensor) -> None:
    """Run the kernels a few times: libraries load, algorithms are chosen, memory is taken."""
    for _ in range(_ROUNDS):
        kernels(given)


def capture(kernels: Kernels, given: Tensor, stream: torch.cuda.Stream, label: str) -> CapturedKernels | None:
    """Capture the kernels, which are warmed up, on `stream`, which is the current one.

    What a replay gives is compared with a plain launch, on noise; in between the kernels run on other noise, so that a graph
    that does nothing is not found equal by what was left in the buffers.

    Args:
        kernels: what to capture.
        given: the input buffer, overwritten with noise.
        stream: not the default one.
        label: which kernels, for the log.

    Returns:
        The graph; None, with a line in the log, where the kernels cannot be captured or a replay gives something else.
    """
    noise = _noise_like(given)
    given.copy_(noise)
    expected = {name: tensor.clone() for name, tensor in kernels(given).items()}
    given.copy_(_noise_like(given))
    kernels(given)
    graph = torch.cuda.CUDAGraph()
    try:
        with _one_capture, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = kernels(given)
    except RuntimeError as error:  # what may not be captured raises this
        _log.warning("%s: no CUDA graph, launched kernel by kernel (%s)", label, error)
        return None
    captured = CapturedKernels(graph, given, outputs)
    given.copy_(noise)
    captured(given)
    stream.synchronize()
    if differing := [name for name, tensor in expected.items() if not agree(outputs[name], tensor)]:
        _log.warning("%s: no CUDA graph, its replay gives another %s than a plain launch", label, ", ".join(differing))
        captured.reset()
        return None
    return captured


def agree(first: Tensor, second: Tensor) -> bool:
    """Equal, but for the order in which a kernel may have added."""
    if first.is_floating_point():
        return torch.allclose(first.float(), second.float(), rtol=1e-3, atol=1e-4, equal_nan=True)
    return torch.equal(first, second)


def _noise_like(tensor: Tensor) -> Tensor:
    """0..1, or for integers 0 and 1."""
    if tensor.is_floating_point():
        return torch.rand_like(tensor)
    return torch.randint_like(tensor, 0, 2)
