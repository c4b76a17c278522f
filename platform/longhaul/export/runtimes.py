"""Exported files as torch modules, so that a workload measures them as it measures the original."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from longhaul.errors import LonghaulError
from longhaul.export.onnx_model import as_tuple
from longhaul.workloads.base import Signature


class OnnxModel(nn.Module):
    """An ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        signature: names and order of its inputs and outputs.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # A number of its own choice it would bind to cores, and then wait for whoever else is busy there.
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch wants the cores in turn
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Inputs by position -> the output, or a tuple where there are several."""
        feed = {name: tensor.contiguous().numpy() for name, tensor in zip(self._inputs, inputs, strict=True)}
        outputs = tuple(torch.from_numpy(array) for array in self._session.run(self._outputs, feed))
        return outputs[0] if len(outputs) == 1 else outputs


class TensorRTModel(nn.Module):
    """A plan for one batch size, run on this machine's GPU; answers are where the first input is.

    Args:
        plan: the serialized engine.
        builder: the library that built it, `tensorrt` or `tensorrt_rtx`.
        signature: names and order of its inputs and outputs.

    Raises:
        LonghaulError: the library cannot load the plan here.
    """

    def __init__(self, plan: Path, builder: str, signature: Signature) -> None:
        super().__init__()
        library = importlib.import_module(builder)
        self._runtime = library.Runtime(library.Logger(library.Logger.ERROR))  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:  # it raises nothing
            raise LonghaulError(f"plan {plan.name}: {builder} {library.__version__} cannot load it on this machine")
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise LonghaulError(f"plan {plan.name}: no execution context; the GPU's memory may be full")
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = {spec.name: getattr(torch, spec.dtype) for spec in signature.outputs}

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Inputs by position -> the output, or a tuple where there are several."""
        buffers = {name: tensor.contiguous().cuda() for name, tensor in zip(self._inputs, inputs, strict=True)}
        for name, tensor in buffers.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
        for name, dtype in self._outputs.items():
            buffers[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device="cuda")
        for name, tensor in buffers.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # the copies of the inputs
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise LonghaulError("TensorRT could not start the inference; its log has the reason")
        stream.synchronize()
        outputs = tuple(buffers[name].to(inputs[0].device) for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class FixedBatches(nn.Module):
    """Models for one batch size each as one for any number of samples.

    Args:
        models: batch size -> model.
    """

    def __init__(self, models: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.sizes = tuple(sorted(models))
        self._models = dict(models)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Inputs by position, any number of samples -> the output, or a tuple where there are several."""
        largest = self.sizes[-1]
        parts = [self._part(tuple(tensor[at : at + largest] for tensor in inputs)) for at in range(0, len(inputs[0]), largest)]
        outputs = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def at(self, size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """All outputs, by the model for batches of `size`; a last batch that is not full is filled with its first sample."""
        parts = []
        for start in range(0, len(inputs[0]), size):
            part = tuple(tensor[start : start + size] for tensor in inputs)
            count = len(part[0])
            full = (torch.cat([tensor, tensor[:1].expand(size - count, *tensor.shape[1:])]) for tensor in part)
            parts.append(tuple(output[:count] for output in as_tuple(self._models[size](*full))))
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def _part(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """By the smallest batch that holds the samples."""
        return self.at(next(size for size in self.sizes if size >= len(inputs[0])), *inputs)
