"""From a run to a registered model: weights -> ONNX -> engine plans -> parity -> registry, one small step after another."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from longhaul import workloads
from longhaul.engines.engine_module import EngineModule
from longhaul.engines.inference import InferenceEngine
from longhaul.engines.onnxruntime_engine import OnnxRuntimeEngine
from longhaul.engines.tensorrt_engine import TensorRTEngine
from longhaul.errors import IntegrityError
from longhaul.export.decisions import Runtime, compare_decisions
from longhaul.export.manifest import (
    MODEL_FILE,
    Description,
    Manifest,
    PlanRecord,
    batch_file,
)
from longhaul.export.onnx_model import export_onnx
from longhaul.export.parity import Comparison, compare
from longhaul.export.registry import Registry
from longhaul.export.tensorrt_plan import build_plan
from longhaul.models.faster_rcnn import Detector
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.resilience.checkpoint import Weights, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.storage import cache_folder
from longhaul.workloads import Signature, Workload

Which = Literal["best", "latest"]
Say = Callable[[str], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Exported:
    """What an export made so far.

    Attributes:
        files: ONNX files and plans.
        comparison: with the torch model.
        plans: which of the files are engine plans.
    """

    files: list[Path]
    comparison: Comparison
    plans: tuple[PlanRecord, ...]


def export_run(
    run: RunDirectory,
    registry: Registry,
    *,
    which: Which = "best",
    with_plan: bool = True,
    timing_cache: Path | None = None,
    say: Say = _log.info,
) -> Manifest:
    """Export a checkpoint of a run and register it as the next version of the recipe's model.

    A model whose parity failed is registered too, marked so, for whoever must find out why; it cannot be promoted. All
    other failures register nothing.

    Args:
        run: where the weights are.
        registry: where the model goes.
        which: the best checkpoint by the goal metric, or the newest.
        with_plan: also build an engine plan, where a builder is installed.
        timing_cache: folder for what plan builders measure; left out, `$LONGHAUL_CACHE/tensorrt` or `~/.cache/longhaul/tensorrt`.
        say: is told what is going on, a line a step.

    Raises:
        UserError: the run has no checkpoint, its data are no longer there, or the recipe's export cannot be had.
        IntegrityError: the checkpoint is damaged, or does not fit the recipe's network.
        PlanError: the builder refused the model.
    """
    weights = load_weights(run, which)
    recipe = resolve(run.recipe())[weights.phase]
    workload = workloads.build(recipe)
    say(f"checkpoint {weights.checkpoint} (step {weights.step}) of {run.uri}")
    model = _network(recipe, workload, weights)
    with tempfile.TemporaryDirectory(prefix="longhaul-export-") as scratch:
        exported = _export(model, recipe, workload, Path(scratch), _plan_builder(recipe, with_plan, timing_cache), say)
        description = Description(
            name=recipe.export.model_name or recipe.name,
            signature=workload.signature(),
            max_batch=max(recipe.export.batches, default=recipe.export.max_batch),
            batches=tuple(sorted(set(recipe.export.batches))),
            metrics=exported.comparison.metrics,
            parity=exported.comparison.record,
            recipe_sha256=run.recipe().sha256,
            run=run.uri,
            checkpoint=weights.checkpoint,
            step=weights.step,
            plans=exported.plans,
        )
        manifest = registry.publish(description, exported.files)
    say(f"registered {manifest.name}@{manifest.version} in {registry.uri}")
    run.add_event(
        "exported", f"{manifest.name}@{manifest.version}", step=weights.step, registry=registry.uri, checkpoint=weights.checkpoint
    )
    return manifest


_PlanBuilder = Callable[[Path, Signature, int | None], PlanRecord | None]


def _plan_builder(recipe: Recipe, with_plan: bool, timing_cache: Path | None) -> _PlanBuilder:
    """(ONNX file, signature, batch or None) -> what was built, beside the file."""
    cache = timing_cache or cache_folder("tensorrt")
    most, precision = recipe.export.max_batch, recipe.export.precision

    def build(file: Path, signature: Signature, batch: int | None) -> PlanRecord | None:
        if not with_plan:
            return None
        return build_plan(file, signature, file.parent, max_batch=most, batch=batch, precision=precision, timing_cache=cache)

    return build


def _export(
    model: nn.Module, recipe: Recipe, workload: Workload, folder: Path, plan_builder: _PlanBuilder, say: Say
) -> _Exported:
    """ONNX files, engine plans, and how both compare with the model."""
    section, signature = recipe.export, workload.signature()
    batches = sorted(set(section.batches))
    graph = workload.exportable(model, section.precision)
    files = export_onnx(graph, signature, folder, max_batch=section.max_batch, opset=section.opset, batches=batches)
    sizes = ", ".join(map(str, batches)) if batches else f"1 to {section.max_batch}"
    say(f"ONNX written: opset {section.opset}, {section.precision}, batch {sizes}")
    onnx_files: dict[int | None, Path] = {batch: folder / batch_file(batch) for batch in batches}
    onnx_files = onnx_files or {None: folder / MODEL_FILE}
    plans = []
    for batch, file in onnx_files.items():
        plan = plan_builder(file, signature, batch)
        if plan is not None:
            plans.append(plan)
            files.append(folder / plan.file)
            say(f"plan {plan.file} built by {plan.builder} {plan.builder_version}")
    comparison = _comparison(model, workload, onnx_files, plans, recipe)
    for line in comparison.record.findings:
        say(line)
    return _Exported(files, comparison, tuple(plans))


def _comparison(
    model: nn.Module, workload: Workload, onnx_files: Mapping[int | None, Path], plans: Sequence[PlanRecord], recipe: Recipe
) -> Comparison:
    """By what is decided for detectors, by the outputs' numbers for all else."""
    signature, threads = workload.signature(), torch.get_num_threads()
    most = max(recipe.export.batches, default=recipe.export.max_batch)
    with contextlib.ExitStack() as loaded:

        def module(engine: InferenceEngine) -> EngineModule:
            loaded.callback(engine.close)
            return EngineModule(engine)

        if not isinstance(model, Detector):
            exported = module(OnnxRuntimeEngine(onnx_files, signature, max_batch=most, threads=threads))
            return compare(model, exported, workload, max_batch=most)
        # An engine for each size, so that each is tried; a detector has no graph for any size (`recipe.schema`).
        runtimes: dict[Runtime, dict[int, EngineModule]] = {
            "onnxruntime": {
                batch: module(OnnxRuntimeEngine({batch: file}, signature, max_batch=batch, threads=threads))
                for batch, file in onnx_files.items()
                if batch is not None
            }
        }
        if plans and torch.cuda.is_available():
            folder = next(iter(onnx_files.values())).parent
            runtimes[plans[0].builder] = {
                plan.batch: module(
                    TensorRTEngine({plan.batch: folder / plan.file}, plan.builder, signature, max_batch=plan.batch)
                )
                for plan in plans
                if plan.batch is not None
            }
        return compare_decisions(model, runtimes, workload, recipe.export.precision)


def _network(recipe: Recipe, workload: Workload, weights: Weights) -> nn.Module:
    """The recipe's network with the checkpoint's weights, in eval mode."""
    model = workload.build_model(initial=False)
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise IntegrityError(f"checkpoint {weights.checkpoint}: does not fit the network {recipe.model.name} ({error})") from None
    return model.eval()
