"""Sweeps as they lie on disk when they are over, in a second and without training: real files, made-up figures.

Figures follow a simple law (accuracy grows with resolution and saturates, cost grows with its square), so that pictures drawn
from them look like those of a real sweep.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longhaul.insight.profile import Profile, save_profile
from longhaul.insight.timing import Timing
from longhaul.models.counting import Count
from longhaul.recipe import Recipe, dump
from longhaul.recipe.load import resolved
from longhaul.recipe.sweep import SearchSection, SweepRecipe
from longhaul.resilience.checkpoint import CheckpointStore, Manifest, checkpoint_name
from longhaul.resilience.run_directory import RunDirectory, Summary, event_row
from longhaul.resilience.sweep_directory import CellRecord, Standing, SweepDirectory, SweepState

GOAL = "val/top1"
STARTED_S = 1_700_000_000.0
EPOCHS, STEPS_AN_EPOCH = 8, 18
CLASSES = tuple("0123456789")
BASE: dict[str, Any] = {
    "name": "cell",
    "model": {"name": "tiny_cnn"},
    "data": {"kind": "digits", "resolution": 32},
    "training": {"epochs": EPOCHS, "global_batch": 64, "micro_batch": 32},
}
SIGNALS = ("wifi", "bluetooth")
DETECTORS = ("fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_fpn")
DETECTION: dict[str, Any] = {
    **BASE,
    "workload": {"kind": "detection"},
    "model": {"name": DETECTORS[0]},
    "data": {"kind": "spectrograms", "root": "tiles", "classes": list(SIGNALS), "resolution": 64},
    "export": {"batches": [1]},
}
# Million parameters, giga-operations at 32 px, how good it gets, and how much it wants a high resolution.
_NATURE = {
    "tiny_cnn": (0.024, 0.0056, 0.90, 0.10),
    "simple_cnn": (0.72, 0.11, 0.955, 0.12),
    "resnet18": (11.2, 0.074, 0.965, 0.22),
    "resnet34": (21.3, 0.15, 0.97, 0.25),
    "mobilenetv2_100": (2.2, 0.0130, 0.95, 0.45),
    "mobilenetv3_small_100": (1.5, 0.0025, 0.935, 0.5),
    "vgg11": (128.8, 0.61, 0.96, 0.3),
    "vgg13": (129.0, 0.92, 0.962, 0.33),
}
MODELS = ("vgg11", "resnet18", "resnet34", "mobilenetv2_100", "mobilenetv3_small_100", "simple_cnn", "tiny_cnn")
RESOLUTIONS = (32, 48, 64, 96)

Ended = tuple[Standing, str | None]
Ends = Mapping[tuple[str, int], Ended]
"""Cells that have not finished, by model and resolution: their standing, and why."""

ENDS: Ends = {
    ("vgg11", 96): ("skipped", "its chance to beat simple_cnn 96 (0.9444) is 1.3 %, by the rank correlation 0.93 of 5 models"),
    ("resnet34", 96): ("stopped", "ASHA: below the best third at epoch 3"),
    ("mobilenetv3_small_100", 32): ("failed", "RuntimeError: CUDA out of memory <at layer 3>"),
    ("tiny_cnn", 96): ("planned", None),
}


@dataclass(frozen=True)
class Figures:
    """What a made-up cell reaches: its accuracy at the end, million parameters, giga-operations."""

    accuracy: float
    parameters: float
    gflops: float

    def at(self, epoch: float) -> float:
        """The validation accuracy after so many epochs."""
        return self.accuracy * (1 - 0.75 * math.exp(-epoch / 1.6))


def make_grid(
    root: str,
    name: str = "grid",
    *,
    models: Sequence[str] = MODELS,
    resolutions: Sequence[int] = RESOLUTIONS,
    ends: Ends = ENDS,
    folds: int = 0,
    profiled: bool = True,
    weights: bool = False,
) -> SweepDirectory:
    """A grid of models and resolutions.

    Args:
        root: where it goes.
        name: the sweep's.
        models, resolutions: of the grid.
        ends: which cells have not finished.
        folds: so many cells for each combination.
        profiled: whether the cells have been profiled.
        weights: real (untrained) weights in the checkpoints, for what loads them; else a few bytes.
    """
    cells = []
    for model in models:
        for resolution in resolutions:
            for fold in range(folds) if folds else [None]:
                coordinates: dict[str, Any] = {"model.name": model, "data.resolution": resolution}
                if fold is not None:
                    coordinates |= {"data.fold": fold}
                ended = ends.get((model, resolution), ("finished", None))
                recipe = _recipe(BASE, coordinates, folds)
                figures = _figures(model, resolution, shift=0.004 * (fold or 0) - 0.002 * folds)
                cells.append(_make_cell(root, recipe, coordinates, figures, ended, profiled=profiled, weights=weights))
    grid: dict[str, tuple[Any, ...]] = {"model.name": tuple(models), "data.resolution": tuple(resolutions)}
    asked = SweepRecipe(name=name, recipe=BASE, grid=grid, folds=folds)
    return _save(root, asked, cells)


def make_search(root: str, name: str = "search", *, trials: int = 24, folds: int = 0, seed: int = 3) -> SweepDirectory:
    """A search over learning rate, dropout, kind of augmentation and depth of warm-up, in the order in which it was drawn."""
    space: dict[str, Any] = {
        "training.optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
        "model.drop_rate": {"uniform": [0.0, 0.5]},
        "data.augment": {"choice": ["none", "shift", "crop"]},
        "training.global_batch": {"integer": [32, 256]},
    }
    draw = random.Random(seed)
    cells = []
    for number in range(trials):
        lr, drop = 10 ** draw.uniform(-4, -1), draw.uniform(0, 0.5)
        augment, batch = draw.choice(["none", "shift", "crop"]), draw.randint(32, 256)
        accuracy = 0.95 - 0.06 * (math.log10(lr) + 2.5) ** 2 - 0.1 * (drop - 0.15) ** 2
        accuracy += {"none": 0.0, "shift": 0.015, "crop": -0.02}[augment] + draw.gauss(0, 0.004)
        ended: tuple[Standing, str | None] = (
            ("stopped", "ASHA: below the best third at epoch 3") if number % 3 == 2 else ("finished", None)
        )
        drawn = {"training.optimizer.lr": lr, "model.drop_rate": drop, "data.augment": augment, "training.global_batch": batch}
        for fold in range(folds) if folds else [None]:
            coordinates = drawn if fold is None else {**drawn, "data.fold": fold}
            figures, recipe = Figures(accuracy + 0.004 * (fold or 0), 0.024, 0.0056), _recipe(BASE, coordinates, folds)
            cells.append(_make_cell(root, recipe, coordinates, figures, ended, profiled=False, weights=False))
    asked = SweepRecipe(name=name, recipe=BASE, search=SearchSection(kind="tpe", trials=trials, space=space), folds=folds)
    return _save(root, asked, cells)


def make_detection(
    root: str,
    name: str = "detectors",
    *,
    models: Sequence[str] = DETECTORS,
    resolutions: Sequence[int] = (64, 128),
    rates: Sequence[float] = (),
    folds: int = 0,
) -> SweepDirectory:
    """A grid of detectors; each cell has left its curves of precision over recall, two classes.

    Args:
        root: where it goes.
        name: the sweep's.
        models, resolutions: of the grid.
        rates: learning rates of the grid; it does not vary without any.
        folds: so many cells for each combination.
    """
    cells = []
    own_rates: Sequence[float | None] = rates or (None,)
    for model, side, rate, fold in itertools.product(models, resolutions, own_rates, range(folds) if folds else [None]):
        coordinates: dict[str, Any] = {"model.name": model, "data.resolution": side}
        coordinates |= {} if rate is None else {"training.optimizer.lr": rate}
        coordinates |= {} if fold is None else {"data.fold": fold}
        top = 0.9 - 4 / side + 0.03 * models.index(model) - 0.01 * (fold or 0)
        figures = Figures(top if rate is None else top - 0.1 * abs(math.log10(rate) + 3), 20.0, 5.0)
        recipe = _recipe(DETECTION, coordinates, folds)
        cells.append(_make_cell(root, recipe, coordinates, figures, ("finished", None), profiled=False, weights=False))
    grid: dict[str, tuple[Any, ...]] = {"model.name": tuple(models), "data.resolution": tuple(resolutions)}
    grid |= {"training.optimizer.lr": tuple(rates)} if rates else {}
    return _save(root, SweepRecipe(name=name, recipe=DETECTION, grid=grid, folds=folds), cells, goal="val/map50")


def make_cell_run(
    root: str, key: str, recipe: Recipe, figures: Figures, epochs: int, *, finished: bool, weights: bool
) -> RunDirectory:
    """A cell's run directory, as its training would leave it."""
    run, goal, test = RunDirectory.create(f"{root}/cells", key, recipe), _goal(recipe), figures.accuracy - 0.006
    results = {"test/precision": test + 0.002, "test/recall": test - 0.001, "test/f1": test, **_tested(recipe, figures)}
    with run.metric_writer() as writer:
        for epoch in range(1, epochs + 1):
            values = {
                goal: figures.at(epoch),
                "val/loss": 2 * (1 - figures.at(epoch)),
                "train/loss": 2.2 * (1 - figures.at(epoch)),
            }
            place = {"segment": 1, "step": epoch * STEPS_AN_EPOCH, "epoch": float(epoch), "samples": epoch * 1149}
            for name, value in values.items():
                writer.append(**place, time_s=STARTED_S + 3.0 * epoch, name=name, value=value)
    if finished:
        with run.event_writer() as events:
            place = {"segment": 1, "step": epochs * STEPS_AN_EPOCH}
            if recipe.workload.kind == "detection":
                detail = {"split": "test", "classes": list(SIGNALS), "curves": _curves(figures)}
                events.append(**event_row("pr_curves", "precision and recall on test", **place, **detail))
            else:
                matrix = _confusion(test, seed=zlib.crc32(key.encode())).tolist()
                detail = {"split": "test", "classes": list(CLASSES), "matrix": matrix}
                events.append(**event_row("confusion", "confusion matrix on test", **place, **detail))
    best = _make_checkpoints(run, recipe, figures, epochs, weights=weights)
    summary = Summary(
        status="finished" if finished else "stopped",
        workload=recipe.workload.kind,
        goal=goal,
        started_s=STARTED_S,
        step=epochs * STEPS_AN_EPOCH,
        total_steps=EPOCHS * STEPS_AN_EPOCH,
        epoch=float(epochs),
        best=figures.at(epochs),
        best_step=epochs * STEPS_AN_EPOCH,
        best_checkpoint=best,
        results=results if finished else {},
        flops_per_sample=figures.gflops * 3e9,
        device="cpu",
        workers=1,
    )
    run.storage.write_bytes("summary.json", summary.model_copy(update={"updated_s": STARTED_S + 40.0}).model_dump_json().encode())
    return run


def _make_cell(
    root: str, recipe: Recipe, coordinates: dict[str, Any], figures: Figures, ended: Ended, *, profiled: bool, weights: bool
) -> CellRecord:
    standing, reason = ended
    key = f"{recipe.model.name}-{recipe.data.resolution}-{hashlib.sha256(dump(recipe).encode()).hexdigest()[:14]}-c0ffee"
    epochs = {"finished": EPOCHS, "stopped": 3, "failed": 1, "running": 2}.get(standing, 0)
    if epochs:
        run = make_cell_run(root, key, recipe, figures, epochs, finished=standing == "finished", weights=weights)
        if profiled and standing == "finished":
            save_profile(run, make_profile(figures, recipe.data.resolution))
    scores = [(float(epoch), figures.at(epoch)) for epoch in range(1, epochs + 1)]
    return CellRecord(
        key=key,
        coordinates=coordinates,
        recipe=dump(recipe),
        standing=standing,
        reason=reason,
        cost=figures.gflops * 3e9 * 1149 * EPOCHS,
        seconds=30.0 * figures.gflops / 0.05 * epochs / EPOCHS,
        steps=epochs * STEPS_AN_EPOCH,
        score=scores[-1][1] if scores else None,
        scores=scores,
        results=_tested(recipe, figures) if standing == "finished" else {},
    )


def make_profile(figures: Figures, resolution: int) -> Profile:
    """A profile as some CPU would give it."""
    single = 0.4 + 11.0 * figures.gflops + 0.004 * figures.parameters
    count = Count(
        parameters=round(figures.parameters * 1e6),
        buffers=1000,
        size_mb=figures.parameters * 4e6 / 2**20,
        flops=figures.gflops * 1e9,
        activation_bytes=round(2e6 * figures.gflops),
        feature_width=512,
    )
    return Profile(
        shape=(3, resolution, resolution),
        device="Some CPU",
        torch="2.15.0",
        threads=1,
        measured_s=STARTED_S,
        precision="fp32",
        tf32=False,
        channels_last=False,
        single=_timing(1, single),
        batched=_timing(32, single * 20),
        peak_memory_mb=None,
        no_peak_memory="on a CPU it takes a process of its own",
        count=count,
    )


def _goal(recipe: Recipe) -> str:
    return "val/map50" if recipe.workload.kind == "detection" else GOAL


def _tested(recipe: Recipe, figures: Figures) -> dict[str, float]:
    """What the task's own results are on the test split."""
    if recipe.workload.kind == "detection":
        return {"test/map50": float(np.mean(_curves(figures))), "test/map": 0.6 * figures.accuracy}
    return {"test/top1": figures.accuracy - 0.006, "test/loss": 0.2}


def _curves(figures: Figures) -> list[list[float]]:
    """Precision at recall 0, 0.01 ... 1, a row a class; beyond some recall it is 0."""
    recall = np.linspace(0, 1, 101)
    reach = [figures.accuracy, 0.8 * figures.accuracy]
    return [np.where(recall <= end, 1 - 0.3 * (recall / end) ** 3, 0.0).tolist() for end in reach]


def _save(root: str, asked: SweepRecipe, cells: list[CellRecord], goal: str = GOAL) -> SweepDirectory:
    state = SweepState(name=asked.name, goal=goal, direction="max", cells=cells, hours=0.42, dollars=1.25)
    state.notes.append("2026-11-20 19:30 budget.hours 0.4 is spent; 1 cell waits")
    sweep = SweepDirectory.at(root, asked.name)
    sweep.save(asked, state)
    return sweep


def _recipe(base: Mapping[str, Any], coordinates: Mapping[str, Any], folds: int) -> Recipe:
    raw = {section: dict(value) if isinstance(value, dict) else value for section, value in base.items()}
    folded: dict[str, Any] = {"data.folds": folds} if folds else {}
    for field, value in (folded | dict(coordinates)).items():
        node = raw
        *path, last = field.split(".")
        for part in path:
            node[part] = dict(node.get(part, {}))
            node = node[part]
        node[last] = value
    return resolved(raw, "cell")


def _figures(model: str, resolution: int, shift: float = 0.0) -> Figures:
    parameters, gflops, top, want = _NATURE.get(model, _NATURE["resnet18"])
    accuracy = top - want * math.exp(-resolution / 22) + shift
    return Figures(accuracy, parameters, gflops * (resolution / 32) ** 2)


def _timing(batch: int, ms: float) -> Timing:
    return Timing(batch=batch, calls=200, warm_up=20, settled=True, p50_ms=ms, p99_ms=ms * 1.3, samples_per_s=batch * 1000 / ms)


def _confusion(accuracy: float, seed: int) -> np.ndarray:
    """(10, 10) counts of 36 samples a class."""
    draw = np.random.default_rng(seed)
    shares = draw.dirichlet(np.full(len(CLASSES), 0.3), len(CLASSES)) * (1 - accuracy)
    shares[np.diag_indices(len(CLASSES))] += accuracy
    return np.asarray([draw.multinomial(36, row / row.sum()) for row in shares])


def _make_checkpoints(run: RunDirectory, recipe: Recipe, figures: Figures, epochs: int, *, weights: bool) -> str:
    """A checkpoint at each of the last four epochs; returns the last one's name."""
    store, name = CheckpointStore(run), ""
    for epoch in range(max(epochs - 3, 1), epochs + 1):
        step = epoch * STEPS_AN_EPOCH
        name = checkpoint_name(step, "3fa9c2d1")
        with tempfile.TemporaryDirectory() as scratch:
            if weights and epoch == epochs:
                _save_weights(recipe, Path(scratch) / "model.safetensors")
            else:
                (Path(scratch) / "model.safetensors").write_bytes(b"weights")
            manifest = Manifest(
                step=step, rank=0, world_size=1, attempt="3fa9c2d1", created_s=STARTED_S + step, goal=figures.at(epoch), files={}
            )
            store.publish(name, Path(scratch), manifest)
    return name


def _save_weights(recipe: Recipe, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from longhaul.models.zoo import build_image_model
    from longhaul.recipe.networks import ModelSection

    assert isinstance(recipe.model, ModelSection)
    torch.manual_seed(0)
    model = build_image_model(recipe.model, len(CLASSES), recipe.data.resolution)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
