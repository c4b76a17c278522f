"""The explanation of one trained run: a few of its test images, every method, checked, drawn and kept with the run (`record`).

The images are the same in all runs over the same data: they are chosen by id. Each map explains the true class, so that all
runs are asked the same question whatever they answer. An explanation that is there already, of the same weights and with the
same settings, is not computed again.
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
from longhaul.errors import UserError
from longhaul.insight.explain.attribution import METHODS, Floats, Maps, Method, explain, probabilities
from longhaul.insight.explain.consistency import GRID, to_grid
from longhaul.insight.explain.record import ExplainedImage, Explanation, Kept, MethodReport, load_explanation, save
from longhaul.insight.explain.run_pictures import draw
from longhaul.insight.explain.sanity import by_method, sanity_check
from longhaul.recipe import Recipe
from longhaul.resilience.checkpoint import load_weights
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.stage import with_weights
from longhaul.workloads.classification import Classification

log = logging.getLogger(__name__)

IMAGES = 8
SHOWN_PX = 96
"""Largest side of images and maps that are kept to be shown."""


@dataclass(frozen=True)
class Subject:
    """A trained classifier: its best weights in its network, and the images it is tested on."""

    run: RunDirectory
    recipe: Recipe
    model: nn.Module
    checkpoint: str
    test: LabelledImages
    device: torch.device


def explain_run(run: RunDirectory, images: int = IMAGES, methods: Sequence[Method] = METHODS, seed: int = 0) -> Explanation:
    """Explain the best model of a finished run on a few of its test images, and keep all of it with the run.

    Args:
        run: of a classifier.
        images: how many; stratified by class.
        methods: which.
        seed: of the choice of images, by their ids alone, and of the sanity check.

    Raises:
        UserError: the run is not finished or no classifier, or its data are gone.
    """
    subject = open_subject(run)
    samples = subject.test.at(choose_images(subject.test, images, seed))
    former = load_explanation(run)
    if former is not None and _answers(former, subject, samples.ids, methods, seed):
        return former
    pictures = [samples.open(i) for i in range(len(samples))]
    labels = list(samples.labels)
    explanation, kept = explain_pictures(subject, pictures, samples.ids, labels, labels, methods, seed)
    save(run, explanation, kept, draw(explanation, kept))
    return explanation


def open_subject(run: RunDirectory) -> Subject:
    """The best model of a finished run, in evaluation mode.

    Raises:
        UserError: as `explain_run`.
    """
    recipe, summary = run.recipe(), run.summary()
    if recipe.workload.kind != "classification":
        problem = f"run {run.name}: is of kind {recipe.workload.kind}; only classifiers are explained"
        raise UserError(problem, "Give a run of workload.kind: classification; see `longhaul runs ls`")
    if summary.status != "finished":
        fix = f"Let it finish first: longhaul train {run.uri}/recipe.yaml --name {run.name}"
        raise UserError(f"run {run.name}: is not finished, it is {summary.status}", fix)
    workload = Classification(recipe)
    weights = load_weights(run, "best")
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
    """
    preprocess = subject.test.preprocess
    images = torch.stack([preprocess(picture) for picture in pictures]).to(subject.device)
    answers = probabilities(subject.model, images)
    best = answers.argmax(axis=1)
    asked = torch.from_numpy(np.asarray(best if targets is None else targets, dtype=np.int64)).to(subject.device)
    kept, reports = Kept(_as_shown(pictures, preprocess)), []
    for method in methods:
        try:
            maps = explain(subject.model, images, asked, method)
        except UserError as error:  # the other methods still say something
            log.warning("%s: %s", subject.run.name, error)
            reports.append(MethodReport(method=method, problem=error.problem))
            continue
        side = kept.images.shape[1]
        kept.grid[method] = to_grid(maps.strength)
        kept.shown[method] = _scaled(to_grid(maps.values, side)).astype(np.float16)
        reports.append(_report(maps, subject.model, images, asked, seed))
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


def _answers(former: Explanation, subject: Subject, ids: Sequence[str], methods: Sequence[Method], seed: int) -> bool:
    """Whether a former explanation is the one that is asked for."""
    same = (former.checkpoint, former.data, former.seed, former.grid) == (
        subject.checkpoint,
        subject.test.fingerprint,
        seed,
        GRID,
    )
    return same and [image.id for image in former.images] == list(ids) and {r.method for r in former.methods} >= set(methods)


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
        sanity=sanity_check(by_method(maps.method), model, images, targets, seed=seed),
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
