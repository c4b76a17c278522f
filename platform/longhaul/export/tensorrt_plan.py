"""An engine plan of an ONNX file, by whichever TensorRT builder this machine has.

`tensorrt` builds for the GPU in the machine; `tensorrt_rtx`, with the same interface, builds without one, for RTX cards. The
parser's `supports_operator` says yes to operators that then do not build, so nothing is asked beforehand: only a build counts.

Networks are strongly typed: each tensor has the type that the graph says, so precision is a matter of the export. (TensorRT
11 knows nothing else; before it, a builder could choose.)
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

import torch

from longhaul.errors import LonghaulError
from longhaul.export.manifest import PlanRecord
from longhaul.workloads.base import Precision, Signature

Builder = Literal["tensorrt", "tensorrt_rtx"]

_SUFFIX = MappingProxyType({"tensorrt": "trt", "tensorrt_rtx": "rtx"})
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


def build_plan(
    onnx_file: Path,
    signature: Signature,
    folder: Path,
    *,
    max_batch: int,
    batch: int | None = None,
    precision: Precision = "fp32",
    timing_cache: Path | None = None,
) -> PlanRecord | None:
    """Build a plan and write it into `folder`, as `model.trt.plan` or `model.rtx.plan` for `model.onnx`.

    Args:
        onnx_file: what `export_onnx` wrote.
        signature: names and shapes of its inputs.
        folder: an existing local folder.
        max_batch: upper bound of the optimization profile, and the size that it is tuned for.
        batch: the one batch of a graph of fixed shapes; there is no profile then.
        precision: of the graph, for the record.
        timing_cache: folder that keeps the builder's measurements for the next build; made where it is missing.

    Returns:
        What was built; None where no builder is installed (the reason is logged).

    Raises:
        PlanError: the parser or the builder refused the model, or the plan does not load on this machine's GPU.
    """
    name = find_builder()
    if name is None:
        return None
    trt = importlib.import_module(name)
    device = torch.cuda.get_device_name() if name == "tensorrt" else "any"
    logger = _python_logger(trt)
    timings = None
    if timing_cache is not None and name == "tensorrt":  # the RTX builder measures nothing
        timings = _TimingCache(timing_cache, f"{name}-{trt.__version__}-{device}")
    plan = _build(trt, logger, onnx_file, None if batch is not None else _Profile(signature, max_batch), timings)
    if torch.cuda.is_available():
        _check_loads(trt, logger, plan)
    file = folder / f"{onnx_file.stem}.{_SUFFIX[name]}.plan"
    file.write_bytes(plan)
    return PlanRecord(
        file=file.name, builder=name, builder_version=str(trt.__version__), device=device, batch=batch, precision=precision
    )


@dataclass(frozen=True)
class _Profile:
    """The range of shapes of a graph with a dynamic batch."""

    signature: Signature
    max_batch: int

    def add(self, builder: Any, config: Any) -> None:
        profile = builder.create_optimization_profile()
        for spec in self.signature.inputs:
            largest = (self.max_batch, *spec.shape)
            profile.set_shape(spec.name, (1, *spec.shape), largest, largest)
        config.add_optimization_profile(profile)


class _TimingCache:
    """What a builder measured, kept in a file for each builder, version and device."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.timing"

    def load(self, config: Any) -> None:
        """Give the builder what is there."""
        if not hasattr(config, "create_timing_cache"):
            return
        known = self._file.read_bytes() if self._file.is_file() else b""
        cache = config.create_timing_cache(known)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)

    def keep(self, config: Any) -> None:
        """Write what the builder knows now; a second build at the same time may win, and then its measurements stay."""
        cache = config.get_timing_cache() if hasattr(config, "get_timing_cache") else None
        if cache is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        partial.write_bytes(bytes(cache.serialize()))
        partial.replace(self._file)


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


def _build(trt: Any, logger: Any, onnx_file: Path, profile: _Profile | None, timings: _TimingCache | None) -> bytes:
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    # By path, so that weights in a second file are found. True for a file that is no ONNX at all, hence the second test.
    if not parser.parse_from_file(str(onnx_file)) or network.num_outputs == 0:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors] or [
            "no network was found in it"
        ]
        raise PlanError(_refusal(trt, onnx_file, said))
    config = builder.create_builder_config()
    if profile is not None:
        profile.add(builder, config)
    if timings is not None:
        timings.load(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PlanError(_refusal(trt, onnx_file, logger.errors or ["the build failed without a word"]))
    if timings is not None:
        timings.keep(config)
    return bytes(plan)


def _strongly_typed(trt: Any) -> int:
    """The flag of `create_network`; 0 where there is no other kind of network."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _check_loads(trt: Any, logger: Any, plan: bytes) -> None:
    """A plan that cannot load gives None and raises nothing (`Runtime.deserialize_cuda_engine`)."""
    if trt.Runtime(logger).deserialize_cuda_engine(plan) is None:
        said = "; ".join(logger.errors[-3:]) or "without a word"
        device = torch.cuda.get_device_name()
        raise PlanError(f"{trt.__name__} built a plan that does not load on {device}: {said}. Export with --no-plan")


def _refusal(trt: Any, onnx_file: Path, said: list[str]) -> str:
    builder = f"{trt.__name__} {trt.__version__}"
    return f"{builder} cannot build {onnx_file.name}: {'; '.join(said)}. Export with --no-plan to register the ONNX model alone"
