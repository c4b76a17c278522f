"""A torch network as an ONNX file, with the input and output names of its signature and a batch of any size up to a bound."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from torch import Tensor, nn

from longhaul.errors import LonghaulError
from longhaul.export.manifest import MODEL_FILE
from longhaul.workloads.base import Signature, TensorSpec

TORCH_TYPES = MappingProxyType({"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8})
"""The torch type of each `TensorSpec.dtype`."""


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple, also where it gives a single tensor."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def export_onnx(model: nn.Module, signature: Signature, folder: Path, *, max_batch: int, opset: int) -> list[Path]:
    """Write `model.onnx` into `folder`, by torch's dynamo exporter (`torch.onnx.export`), and check it.

    Args:
        model: on the CPU, in float32; its mode (training or not) is as before afterwards.
        signature: what it takes and gives.
        folder: an existing local folder.
        max_batch: the batch dimension is dynamic from 1 to here; for 1 it is fixed.
        opset: ONNX operator set.

    Returns:
        The files written: `model.onnx`, and one with the weights beside it where they exceed the format's 2 GB.

    Raises:
        LonghaulError: the network's outputs are not what the signature says.
    """
    was_training = model.training
    model.eval()
    try:
        # An example batch of one would be taken for a constant.
        example = tuple(torch.zeros(max_batch, *spec.shape, dtype=TORCH_TYPES[spec.dtype]) for spec in signature.inputs)
        with torch.no_grad():
            _check_outputs(as_tuple(model(*example)), signature.outputs, max_batch)
        batch = torch.export.Dim("batch", min=1, max=max_batch) if max_batch > 1 else None
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_shapes=tuple({0: batch} for _ in signature.inputs) if batch is not None else None,
            verbose=False,
        )
    finally:
        model.train(was_training)
    if program is None:  # only the older exporter returns nothing
        raise LonghaulError("torch.onnx.export gave no program")
    program.save(folder / MODEL_FILE)
    onnx.checker.check_model(folder / MODEL_FILE, full_check=True)
    return sorted(folder.glob(f"{MODEL_FILE}*"))


def _check_outputs(outputs: tuple[Tensor, ...], specs: tuple[TensorSpec, ...], batch: int) -> None:
    found = [(tuple(output.shape), output.dtype) for output in outputs]
    wanted = [((batch, *spec.shape), TORCH_TYPES[spec.dtype]) for spec in specs]
    if found != wanted:
        names = ", ".join(spec.name for spec in specs)
        raise LonghaulError(f"the network gives {found} where the workload's signature says {wanted} ({names})")
