"""A torch network as ONNX files, with the input and output names of its signature.

One file takes a batch of any size up to a bound; or there is a file of fixed shapes for each of a few batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import onnx
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longhaul.errors import LonghaulError
from longhaul.export.manifest import MODEL_FILE, batch_file
from longhaul.workloads.base import Signature

TORCH_TYPES = MappingProxyType({"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8})
"""The torch type of each `TensorSpec.dtype`."""


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple, also where it gives a single tensor."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def export_onnx(
    model: nn.Module, signature: Signature, folder: Path, *, max_batch: int, opset: int, batches: Sequence[int] = ()
) -> list[Path]:
    """Write the model into `folder`, by torch's dynamo exporter (`torch.onnx.export`), and check it.

    Args:
        model: on the CPU; its mode (training or not) is as before afterwards.
        signature: what it takes and gives.
        folder: an existing local folder.
        max_batch: without `batches`, the batch dimension is dynamic from 1 to here; for 1 it is fixed.
        opset: ONNX operator set.
        batches: write a file of fixed shapes for each of these batch sizes instead.

    Returns:
        The files written: `model.onnx`, or `model.b1.onnx` and so on for `batches`; and, after each, one with the weights
        where they exceed the format's 2 GB.

    Raises:
        LonghaulError: the network's outputs are not what the signature says.
    """
    was_training = model.training
    model.eval()
    try:
        files = []
        for batch in batches or (max_batch,):
            file = folder / (batch_file(batch) if batches else MODEL_FILE)
            _write(model, signature, file, batch, opset, dynamic=not batches and batch > 1)
            files += sorted(folder.glob(f"{file.name}*"))
        return files
    finally:
        model.train(was_training)


def _write(model: nn.Module, signature: Signature, file: Path, batch: int, opset: int, *, dynamic: bool) -> None:
    # An example batch of one would be taken for a constant.
    example = tuple(torch.zeros(batch, *spec.shape, dtype=TORCH_TYPES[spec.dtype]) for spec in signature.inputs)
    _check_outputs(model, signature, batch)
    dimension = torch.export.Dim("batch", min=1, max=batch) if dynamic else None
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            dynamic_shapes=tuple({0: dimension} for _ in signature.inputs) if dimension is not None else None,
            verbose=False,
        )
    if program is None:  # only the older exporter returns nothing
        raise LonghaulError("torch.onnx.export gave no program")
    program.save(file)
    onnx.checker.check_model(file, full_check=True)


def _check_outputs(model: nn.Module, signature: Signature, batch: int) -> None:
    """Ask for shapes and types alone: a detector in half precision takes minutes on a CPU."""
    specs = signature.outputs
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        outputs = as_tuple(model(*(torch.zeros(batch, *one.shape, dtype=TORCH_TYPES[one.dtype]) for one in signature.inputs)))
    found = [(tuple(output.shape), output.dtype) for output in outputs]
    wanted = [((batch, *spec.shape), TORCH_TYPES[spec.dtype]) for spec in specs]
    if found != wanted:
        names = ", ".join(spec.name for spec in specs)
        raise LonghaulError(f"the network gives {found} where the workload's signature says {wanted} ({names})")
