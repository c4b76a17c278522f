"""Explanations of trained runs: what is kept, what is compared, what is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from longhaul.data.images import ImageSamples
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import UserError
from longhaul.insight.explain import cell
from longhaul.insight.explain.across import draw_across, explain_across
from longhaul.insight.explain.cell import choose_images, explain_run
from longhaul.insight.explain.one_picture import explain_file
from longhaul.insight.explain.record import Explanation, load_explanation, load_kept
from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory


def _samples(classes: int, each: int, side: int = 32) -> ImageSamples:
    ids = [f"{label}/{number:03d}.png" for label in range(classes) for number in range(each)]
    labels = [label for label in range(classes) for _ in range(each)]
    return ImageSamples(Path("x"), ids, labels, tuple(map(str, range(classes))), ImagePreprocess(resolution=side))


def test_images_are_chosen_by_id_and_seed_with_classes_in_turn() -> None:
    samples = _samples(4, 10)
    for seed in range(5):
        assert [samples.ids[i][0] for i in choose_images(samples, 8, seed)] == list("00112233")
    chosen = [samples.ids[i] for i in choose_images(samples, 8, seed=1)]
    turned = samples.at([*range(39, -1, -1)])  # another order and resolution: the same images
    turned = dataclasses.replace(turned, preprocess=ImagePreprocess(resolution=64))
    assert [turned.ids[i] for i in choose_images(turned, 8, seed=1)] == chosen
    assert [samples.ids[i] for i in choose_images(samples, 8, seed=2)] != chosen
    assert len({samples.labels[i] for i in choose_images(samples, 3, seed=1)}) == 3
    assert len(choose_images(samples, 100, seed=1)) == 40


def test_an_explanation_is_kept_with_its_run_and_not_computed_twice(
    runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = explain_run(runs[0], images=5, seed=3)
    assert load_explanation(runs[0]) == found
    assert Explanation.model_validate_json(found.model_dump_json()) == found
    assert [image.label for image in found.images] == [image.target for image in found.images]
    by_name = {report.method: report for report in found.methods}
    assert (by_name["gradcam"].layer, by_name["gradcam"].side) == ("features", 8)
    assert by_name["integrated_gradients"].worst_error is not None
    kept = load_kept(runs[0])
    assert kept.images.shape == (5, 32, 32, 3)
    for method in ("gradcam", "integrated_gradients", "saliency"):
        assert kept.grid[method].shape == (5, 16, 16)
        assert kept.shown[method].shape == (5, 32, 32)
    for name in ("explain", "explain_gradcam", "explain_integrated_gradients", "explain_saliency"):
        picture = Image.open(io.BytesIO(runs[0].storage.read_bytes(f"pictures/{name}.png")))
        assert min(picture.size) > 300

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(cell, "explain_pictures", refuse)
    assert explain_run(runs[0], images=5, methods=["saliency"], seed=3) == found
    for images, seed in ((5, 4), (4, 3)):
        with pytest.raises(AssertionError, match="computed again"):
            explain_run(runs[0], images=images, seed=seed)
    fewer = found.model_copy(update={"methods": found.methods[:1]})
    runs[0].storage.write_bytes("explanation.json", fewer.model_dump_json().encode())
    with pytest.raises(AssertionError, match="computed again"):
        explain_run(runs[0], images=5, seed=3)


def test_runs_at_several_resolutions_are_compared_on_the_same_images(runs: list[RunDirectory]) -> None:
    found = explain_across([runs[2], runs[0], runs[1]], images=4, methods=["gradcam", "saliency"])
    assert list(found.runs) == [32, 48, 64]
    assert [(pair.method, pair.low, pair.high) for pair in found.pairs] == [
        (method, low, high) for method in ("gradcam", "saliency") for low, high in ((32, 48), (32, 64), (48, 64))
    ]
    assert [pair.low for pair in found.to_highest("saliency")] == [32, 48]
    kept = [load_kept(run) for run in runs]
    pair = found.to_highest("saliency")[0]
    for place, value in enumerate(pair.agreement.rank_correlation.images):
        want = spearmanr(kept[0].grid["saliency"][place].ravel(), kept[2].grid["saliency"][place].ravel()).statistic
        assert value == pytest.approx(want, abs=1e-6)
    explained = [one for run in runs if (one := load_explanation(run)) is not None]
    assert {tuple(image.id for image in one.images) for one in explained} == {found.images}
    pictures = draw_across(explained, kept, found)
    assert sorted(pictures) == ["consistency.png", "explain_gradcam.png", "explain_saliency.png"]


def test_a_picture_of_ones_own_is_explained_for_the_answer_of_the_highest_resolution(
    runs: list[RunDirectory], tmp_path: Path
) -> None:
    file = tmp_path / "mine.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70), dtype=np.uint8)).save(file)
    explained, kept = explain_file(runs[:2], file, ["saliency"])
    assert [one.resolution for one in explained] == [32, 48]
    assert {one.images[0].target for one in explained} == {explained[1].images[0].answer}
    assert explained[0].images[0].label is None
    assert kept[0].grid["saliency"].shape == (1, 16, 16)
    assert load_explanation(runs[0]) is None
    with pytest.raises(UserError, match="no such file"):
        explain_file(runs[:1], tmp_path / "none.png")


def test_a_detector_is_refused(tmp_path: Path) -> None:
    text = """
    name: detector
    workload: {kind: detection}
    model: {name: fasterrcnn_resnet18_fpn}
    data: {kind: spectrograms, root: nowhere, classes: [a]}
    training: {epochs: 1, global_batch: 2, micro_batch: 2}
    export: {batches: [1]}
    """
    run = RunDirectory.create(str(tmp_path), "detector", parse(text))
    with pytest.raises(UserError, match="only classifiers are explained"):
        explain_run(run)


def test_what_cannot_be_explained_is_refused_with_what_to_do(runs: list[RunDirectory]) -> None:
    with pytest.raises(UserError, match="Give runs of the same model at other resolutions too"):
        explain_across(runs[:1])
    with pytest.raises(UserError, match="both are tiny_cnn at 32 px"):
        explain_across([runs[0], runs[0]])
    runs[0].write_summary(runs[0].summary().model_copy(update={"status": "paused"}))
    with pytest.raises(UserError, match=r"is not finished, it is paused\. Let it finish first: longhaul train"):
        explain_run(runs[0])
    with pytest.raises(UserError, match="is not explained yet"):
        load_kept(runs[1])
    text = runs[2].storage.read_bytes("recipe.yaml").decode().replace("name: tiny_cnn\n", "name: simple_cnn\n", 1)
    runs[2].storage.write_bytes("recipe.yaml", text.encode())
    with pytest.raises(UserError, match="runs of several models"):
        explain_across(runs[1:])
