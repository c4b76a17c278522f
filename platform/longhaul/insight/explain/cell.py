"""The explanation of one trained run: a few of its test images, every method, checked, drawn and kept with the run (`record`).

The images are the same in all runs over the same data: they are chosen by id. Each map explains the true class, so that all
runs are asked the same question whatever they answer. An explanation that is there already, whole, of the same weights and with
the same settings, is not computed again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from longhaul.data.images import LabelledImages
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import IntegrityError, UserError, first_line
from longhaul.insight.explain.attribution import METHODS, Floats, Maps, Method, explain, probabilities
from longhaul.insight.explain.consistency import GRID, to_grid
from longhaul.insight.explain.layers import grad_cam_layer
from longhaul.insight.explain.record import ExplainedImage, Explanation, Kept, MethodReport, load_explanation, load_kept, save
from longhaul.insight.explain.run_pictures import draw
from longhaul.insight.explain.sanity import by_method, sanity_check
from longhaul.insight.trained_recipe import trained_recipe
from longhaul.models.zoo import build_image_model
from longhaul.recipe import Recipe
from longhaul.recipe.networks import ModelSection
from longhaul.recipe.phases import resolve
from longhaul.resilience.checkpoint import load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.stage import with_weights
from longhaul.workloads.classification import Classification

log = logging.getLogger(__name__)

IMAGES = 8
SHOWN_PX = 96
"""Largest side of images and maps that are kept to be shown."""
_SOME_CLASSES = 2  # their number changes nothing about the layers before the head


@dataclass(frozen=True)
class Subject:
    """A trained classifier: its best weights in its network, and the images it is tested on."""

    run: RunDirectory
    recipe: Recipe
    model: nn.Module
    checkpoint: str
    test: LabelledImages
    device: torch.device


def explain_run(
    run: RunDirectory,
    images: int = IMAGES,
    methods: Sequence[Method] = METHODS,
    seed: int = 0,
    *,
    layer: str | None = None,
) -> Explanation:
    """Explain the best model of a finished run on a few of its test images, and keep all of it with the run.

    Args:
        run: of a classifier.
        images: how many; stratified by class.
        methods: which.
        seed: of the choice of images, by their ids alone, and of the sanity check.
        layer: that Grad-CAM looks at, such as `common_layer` of the runs that this one is compared with; None: the deepest
            that suits this run's resolution.

    Raises:
        UserError: the run is not finished or no classifier, or its data are gone.
    """
    subject = open_subject(run)
    samples = subject.test.at(choose_images(subject.test, images, seed))
    former = _whole(run)
    if former is not None and _answers(former, subject, samples.ids, methods, seed, layer):
        return former
    pictures = [samples.open(i) for i in range(len(samples))]
    labels = list(samples.labels)
    explanation, kept = explain_pictures(subject, pictures, samples.ids, labels, labels, methods, seed, layer)
    return save(run, explanation, kept, draw(explanation, kept))


def common_layer(runs: Sequence[RunDirectory]) -> str:
    """The layer that Grad-CAM looks at in all runs of one network at several resolutions, so that their maps can be compared.

    It is the deepest that still has `LEAST_SIDE` cells along a side at the lowest resolution; where none has, the next
    resolution decides, and Grad-CAM says nothing at those below. Neither weights nor data are read.

    Raises:
        UserError: the network has no such layer at any of the resolutions, or the runs are none of a classifier.
    """
    problems = []
    for recipe in sorted((_classifier_recipe(run) for run in runs), key=lambda one: one.data.resolution):
        side = recipe.data.resolution
        assert isinstance(recipe.model, ModelSection)  # `_classifier_recipe` has seen to it
        bare = recipe.model.model_copy(update={"pretrained": False, "weights": None})
        try:
            with torch.device("meta"):
                return grad_cam_layer(build_image_model(bare, _SOME_CLASSES, side), side).name
        except (UserError, RuntimeError) as error:  # RuntimeError: a network that needs data to find its way through
            problems.append(f"{side} px: {first_line(error)}")
    raise UserError(f"no layer for Grad-CAM ({'; '.join(problems)})", "Take another method: integrated_gradients, saliency")


def common_layer_or_none(runs: Sequence[RunDirectory], methods: Sequence[Method]) -> str | None:
    """`common_layer`; None where Grad-CAM is not asked for or has none, which its part of each explanation says."""
    if "gradcam" not in methods:
        return None
    try:
        return common_layer(runs)
    except UserError as error:
        log.warning("%s", error)
        return None


def open_subject(run: RunDirectory) -> Subject:
    """The best model of a finished run, in evaluation mode.

    Raises:
        UserError: as `explain_run`.
    """
    _classifier_recipe(run)
    summary = run.summary()
    if summary.status != "finished":
        fix = f"Let it finish first: longhaul train {run.uri}/recipe.yaml --name {run.name}"
        raise UserError(f"run {run.name}: is not finished, it is {summary.status}", fix)
    weights = load_weights(run, "best")
    recipe = resolve(run.recipe())[weights.phase]
    workload = Classification(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.scaling.gpu is not False else "cpu")
    model = with_weights(workload, weights).to(device).eval()
    return Subject(run, recipe, model, weights.checkpoint, workload.splits.test, device)


def choose_images(samples: LabelledImages, count: int, seed: int) -> list[int]:
    """Places of `count` images, all where there are fewer: a class after the other gives one, in an order that the seed draws.

    Only ids, labels and the seed decide, so runs over the same data choose the same images.
    """

    def drawn(text: str) -> str:
        return hashlib.sha256(f"{seed}|{text}".encode()).hexdigest()

    turns: dict[int, int] = {}
    keyed = []
    for place in sorted(range(len(samples)), key=lambda i: drawn(samples.ids[i])):
        label = samples.labels[place]
        turns[label] = turns.get(label, -1) + 1
        keyed.append((turns[label], drawn(f"class {samples.classes[label]}"), place))
    chosen = [place for _, _, place in sorted(keyed)[:count]]
    return sorted(chosen, key=lambda i: (samples.labels[i], samples.ids[i]))


def explain_pictures(
    subject: Subject,
    pictures: Sequence[Image.Image],
    ids: Sequence[str],
    labels: Sequence[int | None],
    targets: Sequence[int] | None,
    methods: Sequence[Method],
    seed: int,
    layer: str | None = None,
) -> tuple[Explanation, Kept]:
    """Explain any pictures; nothing is written.

    Args:
        subject: the classifier.
        pictures: N of them.
        ids: their names.
        labels: their true classes, None where that is not known.
        targets: the classes to explain; None: what the model answers.
        methods: which.
        seed: of the sanity check.
        layer: that Grad-CAM looks at; None: the deepest that suits.
    """
    preprocess = subject.test.preprocess
    images = torch.stack([preprocess(picture) for picture in pictures]).to(subject.device)
    answers = probabilities(subject.model, images)
    best = answers.argmax(axis=1)
    asked = torch.from_numpy(np.asarray(best if targets is None else targets, dtype=np.int64)).to(subject.device)
    kept, reports = Kept(_as_shown(pictures, preprocess)), []
    for method in methods:
        try:
            maps = explain(subject.model, images, asked, method, layer=layer)
            reports.append(_report(maps, subject.model, images, asked, seed))
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # not the network's fault: another attempt may succeed
            raise
        except (UserError, RuntimeError) as error:  # the other methods still say something
            log.warning("%s: %s: %s", subject.run.name, method, error)
            problem = error.problem if isinstance(error, UserError) else first_line(error)
            reports.append(MethodReport(method=method, problem=problem, layer=layer if method == "gradcam" else None))
            continue
        side = kept.images.shape[1]
        kept.grid[method] = to_grid(maps.strength)
        kept.shown[method] = _scaled(to_grid(maps.values, side)).astype(np.float16)
    told = [
        ExplainedImage(id=id_, label=label, target=int(target), answer=int(answer), probability=float(row[answer]))
        for id_, label, target, answer, row in zip(ids, labels, asked.tolist(), best, answers, strict=True)
    ]
    explanation = Explanation(
        run=subject.run.name,
        model=subject.recipe.model.name,
        resolution=preprocess.resolution,
        checkpoint=subject.checkpoint,
        data=subject.test.fingerprint,
        seed=seed,
        grid=GRID,
        classes=subject.test.classes,
        images=tuple(told),
        methods=tuple(reports),
    )
    return explanation, kept


def _classifier_recipe(run: RunDirectory) -> Recipe:
    """That of the phase whose weights are explained."""
    recipe = trained_recipe(run)
    if recipe.workload.kind != "classification":
        problem = f"run {run.name}: is of kind {recipe.workload.kind}; only classifiers are explained"
        raise UserError(problem, "Give a run of workload.kind: classification; see `longhaul runs ls`")
    return recipe


def _whole(run: RunDirectory) -> Explanation | None:
    """A former explanation whose maps are there and are its own."""
    former = load_explanation(run)
    try:
        if former is not None:
            load_kept(run)
    except (IntegrityError, UserError) as error:
        log.warning("%s; it is explained anew", error)
        return None
    return former


def _answers(
    former: Explanation, subject: Subject, ids: Sequence[str], methods: Sequence[Method], seed: int, layer: str | None
) -> bool:
    """Whether a former explanation is the one that is asked for; it may have more methods."""
    was = (former.checkpoint, former.data, former.resolution, former.seed, former.grid)
    now = (subject.checkpoint, subject.test.fingerprint, subject.test.preprocess.resolution, seed, GRID)
    by_name = {report.method: report for report in former.methods}
    if was != now or [image.id for image in former.images] != list(ids) or not by_name.keys() >= set(methods):
        return False
    if "gradcam" not in methods:
        return True
    looked = by_name["gradcam"]
    wanted = grad_cam_layer(subject.model, former.resolution).name if layer is None and looked.problem is None else layer
    return looked.layer == wanted


def _report(maps: Maps, model: nn.Module, images: Tensor, targets: Tensor, seed: int) -> MethodReport:
    done = maps.complete
    return MethodReport(
        method=maps.method,
        layer=maps.layer,
        side=maps.side,
        empty=int((np.ptp(maps.strength, axis=(1, 2)) == 0).sum()),
        incomplete=0 if done is None else int((~done).sum()),
        worst_error=None if maps.error is None else float(maps.error.max()),
        most_steps=None if maps.steps is None else int(maps.steps.max()),
        sanity=sanity_check(by_method(maps.method, maps.layer), model, images, targets, seed=seed),
    )


def _as_shown(pictures: Sequence[Image.Image], preprocess: ImagePreprocess) -> npt.NDArray[np.uint8]:
    """(N, S, S, 3): what the network sees, smaller where it is large."""
    pixels = torch.stack([preprocess.fit(picture) for picture in pictures]).numpy()
    side = min(preprocess.resolution, SHOWN_PX)
    channels = [to_grid(pixels[:, channel], side) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _scaled(maps: Floats) -> Floats:
    """Each map by its own largest value: half precision has no room for gradients of 1e-8."""
    largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
    return np.asarray(maps / np.where(largest > 0, largest, 1), dtype=np.float32)
