"""The TensorRT engine: a plan on a CUDA stream of its own, with torch tensors as its buffers.

A plan loads only in the library (`tensorrt`, or the API-identical `tensorrt_rtx`), the version and on the kind of GPU that
it was built for. One that does not fit yields None and raises nothing (`Runtime.deserialize_cuda_engine`).
"""

from __future__ import annotations

import importlib
import itertools
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from longhaul.engines.inference import Array, check_batch, check_names, only_input, warm_up
from longhaul.errors import LonghaulError, UserError
from longhaul.workloads.base import Signature

# By name, because the two libraries have enums of their own and not every version knows every member.
_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


class PlanNotLoadable(LonghaulError):
    """A plan's library is not here, or it was built for another version or GPU; another plan, or ONNX Runtime, may serve."""


class TensorRTEngine:
    """One plan, one execution context, one stream; calls from several threads take turns.

    Args:
        plan: the serialized engine.
        builder: the library that built it, `tensorrt` or `tensorrt_rtx` (`PlanRecord.builder`).
        signature: what the model takes and gives.
        max_batch: the most samples that one call takes; the plan's own profile may allow less, and then that is the limit.
        device: the CUDA device.

    Raises:
        UserError: there is no CUDA device.
        PlanNotLoadable: the library is not installed, or it cannot load the plan here.
        IntegrityError: the plan's tensors are not those of the signature.
    """

    kind = "tensorrt"

    def __init__(self, plan: Path, builder: str, signature: Signature, *, max_batch: int, device: str = "cuda:0") -> None:
        if not torch.cuda.is_available():
            raise UserError(f"plan {plan.name}: this machine has no CUDA device", "Choose engine onnxruntime")
        self._device = torch.device(device)
        self._input = only_input(signature)
        self._outputs = [output.name for output in signature.outputs]
        self._lock = threading.Lock()
        with torch.cuda.device(self._device):
            self._library, self._runtime, self._engine = _load(plan, builder)
            check_names(plan.name, signature, *self._tensor_names())
            self._context: Any = self._engine.create_execution_context()
            if self._context is None:
                raise PlanNotLoadable(f"plan {plan.name}: no execution context; the GPU's memory may be full")
            self._stream: Any = torch.cuda.Stream(self._device)
            largest = int(self._engine.get_tensor_profile_shape(self._input.name, 0)[2][0])
            self.max_batch = min(max_batch, largest)
            self._buffers = self._allocate()

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`; a CUDA tensor is copied once, on the device, behind the caller's current stream."""
        check_batch(batch, self._input, self.max_batch)
        samples = batch.shape[0]
        with self._lock, torch.cuda.device(self._device):
            if self._context is None:
                raise RuntimeError("the engine is closed")
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                source = torch.as_tensor(batch)
                self._buffers[self._input.name][:samples].copy_(source, non_blocking=True)
                if source.is_cuda:
                    source.record_stream(self._stream)  # or the allocator may hand its memory on while the copy reads it
                self._context.set_input_shape(self._input.name, (samples, *self._input.shape))
                if not self._context.execute_async_v3(self._stream.cuda_stream):
                    raise RuntimeError("TensorRT could not start the inference; its log has the reason")
                answers = {name: self._buffers[name][:samples].to("cpu", non_blocking=True) for name in self._outputs}
            self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in answers.items()}

    def warm_up(self) -> None:
        """See `InferenceEngine.warm_up`."""
        warm_up(self, self._input)

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        with self._lock:
            self._buffers.clear()
            # In this order: the library wants a context gone before its engine, and the engine before its runtime.
            self._context = None
            self._engine = None
            self._runtime = None

    def _tensor_names(self) -> tuple[list[str], list[str]]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._library.TensorIOMode.INPUT]
        return inputs, [name for name in names if name not in inputs]

    def _allocate(self) -> dict[str, Tensor]:
        """A device buffer for every tensor at the largest batch; their addresses never change."""
        self._context.set_input_shape(self._input.name, (self.max_batch, *self._input.shape))
        buffers = {}
        for name in itertools.chain(*self._tensor_names()):
            dtype = _DTYPES[self._engine.get_tensor_dtype(name).name]
            buffers[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=self._device)
            self._context.set_tensor_address(name, buffers[name].data_ptr())
        return buffers


def _load(plan: Path, builder: str) -> tuple[ModuleType, Any, Any]:
    """The library, a runtime of it (which must outlive the engine), and the engine."""
    try:
        library = importlib.import_module(builder)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
        raise PlanNotLoadable(f"plan {plan.name}: {builder} cannot be imported ({error})") from error
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        here = f"{builder} {library.__version__} on {torch.cuda.get_device_name()}"
        raise PlanNotLoadable(f"plan {plan.name}: {here} cannot load it; it was built for another version or GPU")
    return library, runtime, engine
