"""From a run to a registered model: weights -> ONNX -> parity -> engine plan -> registry, one small step after another."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn

from longhaul import workloads
from longhaul.errors import IntegrityError
from longhaul.export.manifest import MODEL_FILE, Description, Manifest
from longhaul.export.onnx_model import export_onnx
from longhaul.export.parity import compare
from longhaul.export.registry import Registry
from longhaul.export.tensorrt_plan import build_plan
from longhaul.recipe import Recipe
from longhaul.recipe.phases import resolve
from longhaul.resilience.checkpoint import Weights, load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.workloads import Workload

Which = Literal["best", "latest"]
Say = Callable[[str], None]

_log = logging.getLogger(__name__)


def export_run(
    run: RunDirectory, registry: Registry, *, which: Which = "best", with_plan: bool = True, say: Say = _log.info
) -> Manifest:
    """Export a checkpoint of a run and register it as the next version of the recipe's model.

    A model whose parity failed is registered too, marked so, for whoever must find out why; it cannot be promoted. All
    other failures register nothing.

    Args:
        run: where the weights are.
        registry: where the model goes.
        which: the best checkpoint by the goal metric, or the newest.
        with_plan: also build an engine plan, where a builder is installed.
        say: is told what is going on, a line a step.

    Raises:
        UserError: the run has no checkpoint, or its data are no longer there.
        IntegrityError: the checkpoint is damaged, or does not fit the recipe's network.
        PlanError: the builder refused the model.
    """
    weights = load_weights(run, which)
    recipe = resolve(run.recipe())[weights.phase]
    workload = workloads.build(recipe)
    signature, max_batch = workload.signature(), recipe.export.max_batch
    say(f"checkpoint {weights.checkpoint} (step {weights.step}) of {run.uri}")
    model = _network(recipe, workload, weights)
    with tempfile.TemporaryDirectory(prefix="longhaul-export-") as scratch:
        folder = Path(scratch)
        files = export_onnx(model, signature, folder, max_batch=max_batch, opset=recipe.export.opset)
        say(f"ONNX written: opset {recipe.export.opset}, batch 1 to {max_batch}")
        comparison = compare(model, folder / MODEL_FILE, workload, max_batch=max_batch)
        parity = comparison.record
        outcome = "passed" if parity.passed else "FAILED"
        say(f"parity {outcome}: largest difference {parity.max_abs_difference:.2e} over {parity.samples} test samples")
        plan = build_plan(folder / MODEL_FILE, signature, folder, max_batch=max_batch) if with_plan else None
        if plan is not None:
            files.append(folder / plan.file)
            say(f"plan {plan.file} built by {plan.builder} {plan.builder_version}")
        description = Description(
            name=recipe.export.model_name or recipe.name,
            signature=signature,
            max_batch=max_batch,
            metrics=comparison.metrics,
            parity=parity,
            recipe_sha256=run.recipe().sha256,
            run=run.uri,
            checkpoint=weights.checkpoint,
            step=weights.step,
            plans=(plan,) if plan is not None else (),
        )
        manifest = registry.publish(description, files)
    say(f"registered {manifest.name}@{manifest.version} in {registry.uri}")
    run.add_event(
        "exported", f"{manifest.name}@{manifest.version}", step=weights.step, registry=registry.uri, checkpoint=weights.checkpoint
    )
    return manifest


def _network(recipe: Recipe, workload: Workload, weights: Weights) -> nn.Module:
    """The recipe's network with the checkpoint's weights, in eval mode."""
    model = workload.build_model(initial=False)
    try:
        model.load_state_dict(weights.state)
    except RuntimeError as error:
        raise IntegrityError(f"checkpoint {weights.checkpoint}: does not fit the network {recipe.model.name} ({error})") from None
    return model.eval()
