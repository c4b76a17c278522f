"""The inference engine: a batch in, named arrays out. Everything above it is written against `InferenceEngine` alone.

Three makers: ONNX Runtime (the default on a CPU), torch (the reference that the others are compared with), and TensorRT
(`engines.tensorrt_engine`, where there is a GPU). Whoever owns an engine calls `warm_up` before the first request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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
            batch: (N, *shape) as the signature's first input says, 1 <= N <= `max_batch`; a tensor may be on any device.

        Returns:
            Each output by the name it has in the signature, (N, *shape), on the host.

        Raises:
            ValueError: the batch has another shape, or N is out of range.
        """
        ...

    def warm_up(self) -> None:
        """Answer once with one sample and once with a full batch, so that no request pays for first-call set-up."""
        ...

    def close(self) -> None:
        """Give back memory and streams; the engine answers no more."""
        ...


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU.

    Args:
        model: the `.onnx` file; it is read whole, and may be deleted afterwards.
        signature: what the model takes and gives.
        max_batch: the most samples that one call takes.
        threads: cores for one call. Idle threads sleep instead of spinning, so that several engines share a machine.

    Raises:
        IntegrityError: the file is no ONNX model, or its inputs or outputs are not those of the signature.
    """

    kind = "onnxruntime"

    def __init__(self, model: Path, signature: Signature, *, max_batch: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception classes share no base but this one
            raise IntegrityError(f"{model.name}: ONNX Runtime cannot load it ({error})") from error
        check_names(
            model.name, signature, [i.name for i in self._session.get_inputs()], [o.name for o in self._session.get_outputs()]
        )
        self.max_batch = max_batch
        self._input = only_input(signature)
        self._outputs = [output.name for output in signature.outputs]

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`."""
        check_batch(batch, self._input, self.max_batch)
        array = batch.detach().cpu().numpy() if isinstance(batch, Tensor) else batch
        feed = {self._input.name: np.ascontiguousarray(array, dtype=self._input.dtype)}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))

    def warm_up(self) -> None:
        """See `InferenceEngine.warm_up`."""
        warm_up(self, self._input)

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        del self._session


class TorchEngine:
    """A torch module in eval mode: the reference.

    Args:
        module: its `forward` takes the input and returns a tensor, or a tuple of them in the signature's order.
        signature: what the module takes and gives.
        max_batch: the most samples that one call takes.
        device: where to run it; the module is moved there.
    """

    kind = "torch"

    def __init__(self, module: nn.Module, signature: Signature, *, max_batch: int, device: str = "cpu") -> None:
        self._module: nn.Module | None = module.eval().to(device)
        self._device = torch.device(device)
        self.max_batch = max_batch
        self._input = only_input(signature)
        self._outputs = [output.name for output in signature.outputs]

    @torch.inference_mode()
    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`."""
        if self._module is None:
            raise RuntimeError("the engine is closed")
        check_batch(batch, self._input, self.max_batch)
        answer = self._module(torch.as_tensor(batch).to(self._device, getattr(torch, self._input.dtype)))
        tensors = (answer,) if isinstance(answer, Tensor) else tuple(answer)
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._outputs, tensors, strict=True)}

    def warm_up(self) -> None:
        """See `InferenceEngine.warm_up`."""
        warm_up(self, self._input)

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._module = None


def only_input(signature: Signature) -> TensorSpec:
    """The one input that an engine takes.

    Raises:
        UserError: the signature has none, or several.
    """
    if len(signature.inputs) != 1:
        raise UserError(f"a model with {len(signature.inputs)} inputs cannot be served", "Export it with one batched input")
    return signature.inputs[0]


def check_names(what: str, signature: Signature, inputs: list[str], outputs: list[str]) -> None:
    """Compare a loaded file's tensor names with the signature's (an extra output is allowed and never computed).

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


def check_batch(batch: Array | Tensor, spec: TensorSpec, max_batch: int) -> None:
    """Raise ValueError unless `batch` is (N, *spec.shape) with 1 <= N <= max_batch."""
    shape = tuple(batch.shape)
    if shape[1:] != spec.shape or not 1 <= shape[0] <= max_batch:
        wanted = ", ".join(["1.." + str(max_batch), *map(str, spec.shape)])
        raise ValueError(f"input {spec.name!r}: shape {shape} instead of ({wanted})")


def warm_up(engine: InferenceEngine, spec: TensorSpec) -> None:
    """Run `engine` on zeros, one sample and a full batch."""
    for samples in sorted({1, engine.max_batch}):
        engine.infer(np.zeros((samples, *spec.shape), spec.dtype))
