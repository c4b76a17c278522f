"""ONNX Runtime on the CPU: one file for any batch, or a file for each of a few batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from torch import Tensor

from longhaul.engines.batch_sizes import Piece, least_padding
from longhaul.engines.inference import (
    Array,
    EngineClosed,
    check_batch,
    check_input_shape,
    check_names,
    only_input,
    warm_up,
)
from longhaul.errors import IntegrityError
from longhaul.workloads.base import Signature, TensorSpec

_Sessions = dict[int | None, onnxruntime.InferenceSession]


class OnnxRuntimeEngine:
    """An `onnxruntime.InferenceSession` for each file.

    Of several sizes, a batch goes through the largest that it fills, and so on with the rest: on a CPU a padded sample costs
    as much as a real one.

    Args:
        models: batch size -> `.onnx` file, or None -> the one file for any batch (`Manifest.model_files`). They are read whole,
            and may be deleted afterwards.
        signature: what the model takes and gives.
        max_batch: the most samples that one call takes, where one file takes any batch; else it is the largest size.
        threads: cores for one call. Idle threads sleep instead of spinning, so that several engines share a machine.

    Raises:
        IntegrityError: a file is no ONNX model, or its inputs or outputs are not those of the signature.
    """

    kind = "onnxruntime"

    def __init__(self, models: Mapping[int | None, Path], signature: Signature, *, max_batch: int, threads: int) -> None:
        self._input = only_input(signature)
        self._outputs = [output.name for output in signature.outputs]
        self._sessions: _Sessions = {size: _session(file, signature, self._input, size, threads) for size, file in models.items()}
        self._sizes = tuple(sorted(size for size in models if size is not None))
        self.max_batch = max(self._sizes, default=max_batch)

    def infer(self, batch: Array | Tensor) -> dict[str, Array]:
        """See `InferenceEngine.infer`."""
        check_batch(batch, self._input, self.max_batch)
        sessions = self._sessions  # as they are now: `close` may come in the middle, and this batch still gets its answer
        if not sessions:
            raise EngineClosed
        array = batch.detach().cpu().numpy() if isinstance(batch, Tensor) else batch
        array = np.ascontiguousarray(array, dtype=self._input.dtype)
        if not self._sizes:
            return self._run(sessions[None], array)
        parts = [self._piece(sessions, array, piece) for piece in least_padding(len(array), self._sizes)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def warm_up(self) -> None:
        """See `InferenceEngine.warm_up`."""
        warm_up(self, self._input, self._sizes)

    def close(self) -> None:
        """See `InferenceEngine.close`."""
        self._sessions = {}

    def _piece(self, sessions: _Sessions, array: Array, piece: Piece) -> dict[str, Array]:
        samples = array[piece.start : piece.start + piece.count]
        if piece.count == piece.size:
            return self._run(sessions[piece.size], samples)
        padding = np.zeros((piece.size - piece.count, *self._input.shape), self._input.dtype)
        whole = self._run(sessions[piece.size], np.concatenate([samples, padding]))
        return {name: values[: piece.count] for name, values in whole.items()}

    def _run(self, session: onnxruntime.InferenceSession, array: Array) -> dict[str, Array]:
        return dict(zip(self._outputs, session.run(self._outputs, {self._input.name: array}), strict=True))


def _session(model: Path, signature: Signature, spec: TensorSpec, size: int | None, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # A number of its own choice it would bind to cores, and then wait for whoever else is busy there.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes share no base but this one
        raise IntegrityError(f"{model.name}: ONNX Runtime cannot load it ({error})") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_names(model.name, signature, [one.name for one in inputs], [one.name for one in outputs])
    check_input_shape(model.name, spec, size, tuple(inputs[0].shape))
    return session
