"""The TensorRT engine: plans on a CUDA stream of their own, with torch tensors as their buffers.

A plan loads only in the library (`tensorrt`, or the API-identical `tensorrt_rtx`), the version and on the kind of GPU that
it was built for. One that does not fit yields None and raises nothing (`Runtime.deserialize_cuda_engine`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor

from longhaul.engines.device_queue import DeviceQueue, QueuedEngine
from longhaul.engines.inference import EngineClosed, check_input_shape, check_names, only_input
from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.workloads.base import Signature

# By name, because the two libraries have enums of their own and not every version knows every member.
_DTYPES = MappingProxyType(
    {
        "FLOAT": torch.float32,
        "HALF": torch.float16,
        "BF16": torch.bfloat16,
        "INT64": torch.int64,
        "INT32": torch.int32,
        "INT8": torch.int8,
        "UINT8": torch.uint8,
        "BOOL": torch.bool,
    }
)


class PlanNotLoadable(LonghaulError):
    """A plan's library is not here, or it was built for another version or GPU; another plan, or ONNX Runtime, may serve."""


class TensorRTEngine(QueuedEngine):
    """Plans of one model, on one stream; an execution context each, whose scratch memory is its own.

    A batch is padded up to the smallest plan that holds it. From `warm_up` on, plans of a fixed batch run as CUDA graphs.

    Args:
        plans: batch size -> plan, or None -> the one plan for any batch (`PlanRecord.batch`).
        builder: the library that built them, `tensorrt` or `tensorrt_rtx` (`PlanRecord.builder`).
        signature: what the model takes and gives.
        max_batch: the most samples that one call takes, where one plan takes any batch; its profile may allow less, and then
            that is the limit. With plans of fixed batches, the largest of them is.
        device: the CUDA device; engines on several GPUs do not slow each other.
        graphs: no CUDA graphs if False.

    Raises:
        UserError: there is no such CUDA device.
        PlanNotLoadable: the library is not installed, or it cannot load a plan here.
        IntegrityError: a plan's tensors are not those of the signature.
    """

    kind = "tensorrt"

    def __init__(
        self,
        plans: Mapping[int | None, Path],
        builder: str,
        signature: Signature,
        *,
        max_batch: int,
        device: str = "cuda:0",
        graphs: bool = True,
    ) -> None:
        where = cuda_device(device)
        spec = only_input(signature)
        with torch.cuda.device(where):
            library = _library(builder)
            self._runtime: Any = library.Runtime(library.Logger(library.Logger.ERROR))  # must outlive the plans
            self._plans = [
                _Plan(file, library, self._runtime, signature, batch, max_batch, where) for batch, file in plans.items()
            ]
            self._queue = DeviceQueue(
                f"{', '.join(file.name for file in plans.values())} by {builder}",
                {plan.most: plan for plan in self._plans},
                spec,
                where,
                any_size=None in plans,
                graphs=graphs,
            )

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        # In this order: a graph goes before what it launches, a context before its plan, a plan before the runtime.
        self._queue.close()
        for plan in self._plans:
            plan.close()
        self._plans = []
        self._runtime = None


def cuda_device(name: str) -> torch.device:
    """The CUDA device of this name, with its number.

    Raises:
        UserError: there is none, or `name` is no name of a CUDA device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r}: unknown", "Name one such as cuda:0") from None
    if device.type != "cuda":
        raise UserError(f"device {name!r}: TensorRT runs on CUDA devices alone", "Name one such as cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = device.index or 0
    if number >= count:
        has = "no CUDA device" if count == 0 else f"{count} CUDA device{'s'[: count > 1]}"
        fix = "Choose engine onnxruntime" if count == 0 else f"Choose one of cuda:0 to cuda:{count - 1}"
        raise UserError(f"device {name}: this machine has {has}", fix)
    return torch.device("cuda", number)


class _Plan:
    """One loaded plan with its execution context and output buffers, whose addresses never change."""

    def __init__(
        self,
        file: Path,
        library: ModuleType,
        runtime: Any,
        signature: Signature,
        batch: int | None,
        max_batch: int,
        device: torch.device,
    ) -> None:
        self._name = file.name
        self._input = only_input(signature)
        self._engine = _load(file, library, runtime, device)
        inputs, outputs = tensor_names(self._engine, library)
        check_names(file.name, signature, inputs, outputs)
        self._dynamic = batch is None
        check_input_shape(file.name, self._input, batch, tuple(self._engine.get_tensor_shape(self._input.name)))
        self.most = batch or min(max_batch, int(self._engine.get_tensor_profile_shape(self._input.name, 0)[2][0]))
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise PlanNotLoadable(f"plan {file.name}: no execution context; the GPU's memory may be full")
        self._shape_input(self.most)
        self._buffers = {name: self._allocate(name, device) for name in outputs}
        self._given = [spec.name for spec in signature.outputs]

    def __call__(self, given: Tensor) -> Mapping[str, Tensor]:
        """See `longhaul.engines.cuda_graph.Kernels`."""
        if self._context is None:
            raise EngineClosed
        stream = torch.cuda.current_stream(given.device).cuda_stream
        # tensorrt_rtx compiles kernels when they are first needed, and then a capture would not hold them.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if torch.cuda.is_current_stream_capturing() and capturable is not None and not capturable(stream):
            raise RuntimeError(f"plan {self._name} says that it cannot be captured")
        self._shape_input(given.shape[0])
        self._context.set_tensor_address(self._input.name, given.data_ptr())
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"plan {self._name}: TensorRT could not start the inference; its log has the reason")
        return {name: self._buffers[name] for name in self._given}

    def close(self) -> None:
        """Let go of the context, then of the engine."""
        self._buffers = {}
        self._context = None
        self._engine = None

    def _shape_input(self, samples: int) -> None:
        if self._dynamic and not self._context.set_input_shape(self._input.name, (samples, *self._input.shape)):
            raise RuntimeError(f"plan {self._name}: refuses a batch of {samples}")

    def _allocate(self, name: str, device: torch.device) -> Tensor:
        dtype = _DTYPES.get(self._engine.get_tensor_dtype(name).name)
        if dtype is None:
            raise IntegrityError(f"plan {self._name}: output {name!r} is of a type that has no counterpart in torch")
        buffer = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=device)
        self._context.set_tensor_address(name, buffer.data_ptr())
        return buffer


def tensor_names(engine: Any, library: Any) -> tuple[list[str], list[str]]:
    """Names of a loaded plan's inputs and outputs, in its order."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
    return inputs, [name for name in names if name not in inputs]


def _library(builder: str) -> ModuleType:
    try:
        return importlib.import_module(builder)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared libraries do not load
        raise PlanNotLoadable(f"{builder} cannot be imported ({error})") from error


def _load(plan: Path, library: ModuleType, runtime: Any, device: torch.device) -> Any:
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        here = f"{library.__name__} {library.__version__} on {torch.cuda.get_device_name(device)}"
        raise PlanNotLoadable(f"plan {plan.name}: {here} cannot load it; it was built for another version or GPU")
    return engine
