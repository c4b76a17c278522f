"""From an entry of the registry to an engine that can run here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

import torch

from longhaul.engines.inference import InferenceEngine
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.engines.tensorrt_engine import PlanNotLoadable, TensorRTEngine, cuda_device
from longhaul.errors import IntegrityError, UserError
from longhaul.export.manifest import Manifest
from longhaul.export.tensorrt_plan import Builder

EngineKind = Literal["auto", "onnxruntime", "tensorrt"]

_log = logging.getLogger(__name__)


def make_engine(
    manifest: Manifest, files: dict[str, Path], kind: EngineKind = "auto", *, threads: int = 1, device: str = "cuda:0"
) -> InferenceEngine:
    """Load one registry entry, a classifier's or a detector's.

    Args:
        manifest: what the entry is.
        files: its verified files by name (`Registry.fetch`).
        kind: `auto` takes TensorRT where there is a GPU and plans that load on it, else ONNX Runtime.
        threads: CPU cores for one call of an ONNX Runtime engine.
        device: the GPU for TensorRT; `auto` with `cpu` looks for none.

    Raises:
        UserError: `kind` is unknown; or there is no such GPU although there are others; or `tensorrt` and there is no plan that
            loads here.
        IntegrityError: the model is not what the manifest says.
    """
    label = f"model {manifest.name} version {manifest.version}"
    if kind not in get_args(EngineKind):
        raise UserError(f"engine {kind!r}: unknown", f"Choose one of {', '.join(get_args(EngineKind))}")
    if kind == "tensorrt" or (kind == "auto" and device != "cpu" and torch.cuda.is_available()):
        engine, why = _by_tensorrt(manifest, files, device)
        if engine is not None:
            return engine
        if kind == "tensorrt":
            fix = "Export one on this GPU, or choose engine onnxruntime"
            raise UserError(f"{label}: no TensorRT plan to load ({why})", fix)
        _log.warning("%s: served by ONNX Runtime on the CPU, because %s", label, why)
    models = {}
    for batch, name in manifest.model_files.items():
        if name not in files:
            raise IntegrityError(f"{label}: {name} is not among its files")
        models[batch] = files[name]
    return OnnxRuntimeEngine(models, manifest.signature, max_batch=manifest.max_batch, threads=threads)


def plan_choices(manifest: Manifest) -> list[tuple[Builder, dict[int | None, str]]]:
    """The plans of each builder by batch size; `tensorrt` first, whose plans are tuned to their GPU.

    A builder whose plans do not reach the model's largest batch is left out.
    """
    choices: list[tuple[Builder, dict[int | None, str]]] = []
    builders: tuple[Builder, ...] = get_args(Builder)
    for builder in builders:
        plans = {plan.batch: plan.file for plan in manifest.plans if plan.builder == builder}
        if None in plans:
            choices.append((builder, {None: plans[None]}))
        elif manifest.max_batch in plans:
            choices.append((builder, plans))
    return choices


def _by_tensorrt(manifest: Manifest, files: dict[str, Path], device: str) -> tuple[InferenceEngine | None, str]:
    """The engine, or why there is none."""
    choices = plan_choices(manifest)
    if not choices:
        return None, "the entry holds no plan" + (f" for its largest batch, {manifest.max_batch}" if manifest.plans else "")
    cuda_device(device)
    reasons = []
    for builder, plans in choices:
        paths = {batch: files[file] for batch, file in plans.items()}
        try:
            return TensorRTEngine(paths, builder, manifest.signature, max_batch=manifest.max_batch, device=device), ""
        except PlanNotLoadable as error:
            reasons.append(str(error))
    return None, "; ".join(reasons)
