"""From an entry of the registry to an engine that can run here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

import torch

from longhaul.engines.inference import InferenceEngine, OnnxRuntimeEngine
from longhaul.errors import IntegrityError, UserError
from longhaul.export.manifest import MODEL_FILE, Manifest

EngineKind = Literal["auto", "onnxruntime", "tensorrt"]

_log = logging.getLogger(__name__)


def make_engine(manifest: Manifest, files: dict[str, Path], kind: EngineKind = "auto", *, threads: int = 1) -> InferenceEngine:
    """Load one registry entry.

    Args:
        manifest: what the entry is.
        files: its verified files by name (`Registry.fetch`).
        kind: `auto` takes a TensorRT plan where there is a GPU and a plan that loads on it, else ONNX Runtime.
        threads: CPU cores for one call of an ONNX Runtime engine.

    Raises:
        UserError: `kind` is unknown, or `tensorrt` and there is no GPU or no plan.
        IntegrityError: the model is not what the manifest says.
    """
    from longhaul.engines.tensorrt_engine import PlanNotLoadable, TensorRTEngine

    label = f"model {manifest.name} version {manifest.version}"
    if kind not in get_args(EngineKind):
        raise UserError(f"engine {kind!r}: unknown", f"Choose one of {', '.join(get_args(EngineKind))}")
    reasons = []
    if kind == "tensorrt" or (kind == "auto" and torch.cuda.is_available()):
        for plan in manifest.plans:
            try:
                return TensorRTEngine(files[plan.file], plan.builder, manifest.signature, max_batch=manifest.max_batch)
            except PlanNotLoadable as error:
                reasons.append(str(error))
    if kind == "tensorrt":
        why = "; ".join(reasons) or "the entry holds no plan"
        raise UserError(f"{label}: no TensorRT plan to load ({why})", "Export one on this GPU, or choose engine onnxruntime")
    if reasons:
        _log.warning("%s: served by ONNX Runtime on the CPU, because %s", label, "; ".join(reasons))
    if MODEL_FILE not in files:
        raise IntegrityError(f"{label}: {MODEL_FILE} is not among its files")
    return OnnxRuntimeEngine(files[MODEL_FILE], manifest.signature, max_batch=manifest.max_batch, threads=threads)
