"""An engine plan of an ONNX file, by whichever TensorRT builder this machine has.

`tensorrt` builds for the GPU in the machine; `tensorrt_rtx`, with the same interface, builds without one, for RTX cards. The
parser's `supports_operator` says yes to operators that then do not build, so nothing is asked beforehand: only a build counts.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from longhaul.errors import LonghaulError
from longhaul.export.manifest import PlanRecord
from longhaul.workloads.base import Signature

Builder = Literal["tensorrt", "tensorrt_rtx"]

_log = logging.getLogger(__name__)


class PlanError(LonghaulError):
    """The builder refused the model; the message holds what it said."""


def find_builder() -> Builder | None:
    """The builder to use: `tensorrt` where there is a GPU, else `tensorrt_rtx`; None, with the reason logged, for neither."""
    if torch.cuda.is_available() and _module("tensorrt") is not None:
        return "tensorrt"
    if _module("tensorrt_rtx") is not None:
        return "tensorrt_rtx"
    why = "tensorrt needs a GPU to build" if _module("tensorrt") is not None else "neither tensorrt nor tensorrt_rtx is installed"
    _log.warning("no engine plan: %s; `pip install longhaul[rtx]` builds plans without a GPU", why)
    return None


def build_plan(onnx_file: Path, signature: Signature, folder: Path, *, max_batch: int) -> PlanRecord | None:
    """Build a plan for batches from 1 to `max_batch` and write it into `folder`, as `model.trt.plan` or `model.rtx.plan`.

    Args:
        onnx_file: what `export_onnx` wrote.
        signature: names and shapes of its inputs.
        folder: an existing local folder.
        max_batch: upper bound of the optimization profile, and the size that it is tuned for.

    Returns:
        What was built; None where no builder is installed (the reason is logged).

    Raises:
        PlanError: the parser or the builder refused the model, or the plan does not load on this machine's GPU.
    """
    name = find_builder()
    if name is None:
        return None
    trt = importlib.import_module(name)
    logger = _python_logger(trt)
    plan = _build(trt, logger, onnx_file, signature, max_batch)
    if torch.cuda.is_available():
        _check_loads(trt, logger, plan)
    file = folder / {"tensorrt": "model.trt.plan", "tensorrt_rtx": "model.rtx.plan"}[name]
    file.write_bytes(plan)
    device = torch.cuda.get_device_name() if name == "tensorrt" else "any"
    return PlanRecord(file=file.name, builder=name, builder_version=str(trt.__version__), device=device)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # OSError, RuntimeError: its shared libraries do not load
        _log.debug("%s cannot be imported: %s", name, error)
        return None


def _python_logger(trt: Any) -> Any:
    """A builder's logger that passes on warnings and errors, as warnings, and keeps the errors in `errors`."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is known only when a builder is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)
            if severity not in (trt.ILogger.Severity.INFO, trt.ILogger.Severity.VERBOSE):
                _log.warning("%s: %s", trt.__name__, message)

    return Logger()


def _build(trt: Any, logger: Any, onnx_file: Path, signature: Signature, max_batch: int) -> bytes:
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    # By path, so that weights in a second file are found. True for a file that is no ONNX at all, hence the second test.
    if not parser.parse_from_file(str(onnx_file)) or network.num_outputs == 0:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors] or [
            "no network was found in it"
        ]
        raise PlanError(_refusal(trt, onnx_file, said))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        largest = (max_batch, *spec.shape)
        profile.set_shape(spec.name, (1, *spec.shape), largest, largest)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(_refusal(trt, onnx_file, logger.errors or ["the build failed without a word"]))
    return bytes(plan)


def _check_loads(trt: Any, logger: Any, plan: bytes) -> None:
    """A plan that cannot load gives None and raises nothing (`Runtime.deserialize_cuda_engine`)."""
    if trt.Runtime(logger).deserialize_cuda_engine(plan) is None:
        said = "; ".join(logger.errors[-3:]) or "without a word"
        device = torch.cuda.get_device_name()
        raise PlanError(f"{trt.__name__} built a plan that does not load on {device}: {said}. Export with --no-plan")


def _refusal(trt: Any, onnx_file: Path, said: list[str]) -> str:
    builder = f"{trt.__name__} {trt.__version__}"
    return f"{builder} cannot build {onnx_file.name}: {'; '.join(said)}. Export with --no-plan to register the ONNX model alone"
