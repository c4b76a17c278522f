"""Copies of tensors in the host's memory: the only part of a save that training waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Copies trees of dictionaries, lists and tuples with tensors in them, into buffers that are kept for the next time.

    Fresh memory costs more than the copy (each page is zeroed and mapped first), and pinning costs more still. Whoever reads
    a copy must be done before the next one is made of the same tree.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, tree: Any) -> Any:
        """The same tree with every tensor on the CPU and in memory of its own; other leaves are kept as they are."""
        copied = self._copy(tree, "")
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the copies from the device run behind
        return copied

    def _copy(self, node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            return self._buffer(node.detach(), path)
        if isinstance(node, dict):
            return type(node)((key, self._copy(value, f"{path}/{key}")) for key, value in node.items())
        if isinstance(node, list | tuple) and not hasattr(node, "_fields"):
            return type(node)(self._copy(value, f"{path}/{place}") for place, value in enumerate(node))
        return node

    def _buffer(self, value: Tensor, path: str) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[path] = buffer
        return buffer.copy_(value, non_blocking=value.is_cuda)
