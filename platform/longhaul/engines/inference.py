"""The inference engine: a batch in, named arrays out. Everything above this room is written against `InferenceEngine` alone.

Three makers, a file each: ONNX Runtime (the default on a CPU), torch (the reference that the others are compared with), and
TensorRT (where there is a GPU). Whoever owns an engine calls `warm_up` before the first request.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from longhaul.errors import IntegrityError, UserError
from longhaul.workloads.base import Signature, TensorSpec

Array = NDArray[Any]


class InferenceEngine(Protocol):
    """A loaded model with one batched input; `infer` may be called from any thread.

    Attributes:
        kind: `onnxruntime`, `torch` or `tensorrt`, for people to read.
        max_batch: the most samples that one call takes.
    """

    @property
    def kind(self) -> str: ...

    @property
    def max_batch(self) -> int: ...

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """Run the model.

        Args:
            batch: (N, *shape) as the signature's first input says, 1 <= N <= `max_batch`; a tensor may be on any device. What
                writes a CUDA tensor must be done, or be on the caller's current stream.

        Returns:
            Each output by the name it has in the signature, and in its order, (N, *shape), on the host.

        Raises:
            ValueError: the batch has another shape, or N is out of range.
            RuntimeError: the engine is closed, or the device failed.
        """
        ...

    def warm_up(self) -> None:
        """Do what only the first calls pay for, at every batch size, so that no request pays for it."""
        ...

    def close(self) -> None:
        """Give back memory and streams; the engine answers no more."""
        ...


class EngineClosed(RuntimeError):
    """`infer` after `close`."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")


def only_input(signature: Signature) -> TensorSpec:
    """The one input that an engine takes.

    Raises:
        UserError: the signature has none, or several.
    """
    if len(signature.inputs) != 1:
        raise UserError(f"a model with {len(signature.inputs)} inputs cannot be served", "Export it with one batched input")
    return signature.inputs[0]


def check_names(what: str, signature: Signature, inputs: list[str], outputs: list[str]) -> None:
    """Compare a loaded file's tensor names with the signature's (an extra output is allowed and never given).

    Raises:
        IntegrityError: an input or output is missing, or there is an input that the signature does not know.
    """
    promised_in = {spec.name for spec in signature.inputs}
    promised_out = {spec.name for spec in signature.outputs}
    if set(inputs) != promised_in or not promised_out <= set(outputs):
        raise IntegrityError(
            f"{what}: it takes {sorted(inputs)} and gives {sorted(outputs)}, but its manifest says"
            f" {sorted(promised_in)} and {sorted(promised_out)}"
        )


def check_input_shape(what: str, spec: TensorSpec, batch: int | None, shape: tuple[object, ...]) -> None:
    """Compare a loaded file's input shape with the one promised; `batch` is None where any batch is taken.

    Raises:
        IntegrityError: they differ.
    """
    if shape[1:] != spec.shape or (batch is not None and shape[0] != batch):
        wanted = ("any" if batch is None else batch, *spec.shape)
        raise IntegrityError(f"{what}: its input {spec.name!r} is {shape}, but its manifest says {wanted}")


def check_batch(batch: Array | Tensor, spec: TensorSpec, max_batch: int) -> None:
    """Raise ValueError unless `batch` is (N, *spec.shape) with 1 <= N <= max_batch."""
    shape = tuple(batch.shape)
    if shape[1:] != spec.shape or not 1 <= shape[0] <= max_batch:
        wanted = ", ".join(["1.." + str(max_batch), *map(str, spec.shape)])
        raise ValueError(f"input {spec.name!r}: shape {shape} instead of ({wanted})")


def warm_up(engine: InferenceEngine, spec: TensorSpec, sizes: tuple[int, ...] = ()) -> None:
    """Run `engine` on zeros: one sample, a full batch, and each of `sizes`."""
    for samples in sorted({1, engine.max_batch, *sizes}):
        engine.infer(np.zeros((samples, *spec.shape), spec.dtype))
