"""Explanations of trained runs: what is kept, what is compared, what is refused."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from longhaul.data.images import ImageSamples
from longhaul.data.preprocess import ImagePreprocess
from longhaul.errors import UserError
from longhaul.insight.explain import cell
from longhaul.insight.explain.across import Consistency, compare, draw_across, explain_across
from longhaul.insight.explain.attribution import Maps, explain
from longhaul.insight.explain.cell import choose_images, common_layer, explain_run
from longhaul.insight.explain.one_picture import explain_file
from longhaul.insight.explain.record import Explanation, load_explanation, load_kept
from longhaul.insight.trained_recipe import trained_recipe
from longhaul.recipe import Recipe, dump, parse
from longhaul.resilience.run_directory import RunDirectory


def _refuse(*_: object) -> None:
    raise AssertionError("computed again")


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
    found = explain_run(runs[0], images=3, seed=3)
    assert load_explanation(runs[0]) == found
    assert Explanation.model_validate_json(found.model_dump_json()) == found
    assert [image.label for image in found.images] == [image.target for image in found.images]
    by_name = {report.method: report for report in found.methods}
    assert (by_name["gradcam"].layer, by_name["gradcam"].side) == ("features", 8)
    assert by_name["integrated_gradients"].worst_error is not None
    kept = load_kept(runs[0])
    assert kept.images.shape == (3, 32, 32, 3)
    for method in ("gradcam", "integrated_gradients", "saliency"):
        assert kept.grid[method].shape == (3, 16, 16)
        assert kept.shown[method].shape == (3, 32, 32)
    for name in ("explain", "explain_gradcam", "explain_integrated_gradients", "explain_saliency"):
        picture = Image.open(io.BytesIO(runs[0].storage.read_bytes(f"pictures/{name}.png")))
        assert min(picture.size) > 300

    monkeypatch.setattr(cell, "explain_pictures", _refuse)
    assert explain_run(runs[0], images=3, methods=["saliency"], seed=3) == found
    for images, seed in ((3, 4), (4, 3)):
        with pytest.raises(AssertionError, match="computed again"):
            explain_run(runs[0], images=images, seed=seed)
    with pytest.raises(AssertionError, match="computed again"):
        explain_run(runs[0], images=3, seed=3, layer="features.3")
    fewer = found.model_copy(update={"methods": found.methods[:1]})
    runs[0].storage.write_bytes("explanation.json", fewer.model_dump_json().encode())
    with pytest.raises(AssertionError, match="computed again"):
        explain_run(runs[0], images=3, seed=3)


def test_runs_at_several_resolutions_are_compared_on_the_same_images(runs: list[RunDirectory]) -> None:
    found = explain_across([runs[2], runs[0], runs[1]], images=2, methods=["gradcam", "saliency"])
    assert (found.layer, found.sides) == ("features", {32: 8, 48: 12, 64: 16})
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


def test_all_resolutions_are_asked_about_the_layer_of_the_lowest(moving: list[RunDirectory]) -> None:
    assert [explain_run(run, 2, ["gradcam"]).looked_at for run in moving] == [("layer2", 4), ("layer3", 4)]
    apart = [one for run in moving if (one := load_explanation(run)) is not None]
    assert compare(apart, [load_kept(run) for run in moving]).pairs == ()  # two layers are two questions
    assert common_layer([moving[1], moving[0]]) == "layer2"
    found = explain_across(moving, images=2, methods=["gradcam"])
    assert (found.layer, found.sides) == ("layer2", {32: 4, 64: 8})
    assert [pair.method for pair in found.pairs] == ["gradcam"]
    assert Consistency.model_validate_json(found.model_dump_json()) == found
    together = [load_explanation(run) for run in moving]
    assert [one.looked_at for one in together if one is not None] == [("layer2", 4), ("layer2", 8)]


def test_an_explanation_answers_for_its_own_layer_alone(moving: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain_run(moving[1], 2, ["gradcam"], layer="layer2")
    monkeypatch.setattr(cell, "explain_pictures", _refuse)
    assert explain_run(moving[1], 2, ["gradcam"], layer="layer2") == found
    for layer in (None, "layer1"):
        with pytest.raises(AssertionError, match="computed again"):
            explain_run(moving[1], 2, ["gradcam"], layer=layer)


def test_where_the_lowest_resolution_has_no_layer_the_next_one_decides(moving: list[RunDirectory]) -> None:
    for run, side in zip(moving, (16, 64), strict=True):
        recipe = run.recipe().model_dump(mode="json")
        recipe["model"]["name"], recipe["data"]["resolution"] = "vgg11", side
        run.storage.write_bytes("recipe.yaml", dump(Recipe.model_validate(recipe)).encode())
    assert common_layer(moving) == common_layer(moving[1:])
    with pytest.raises(UserError, match=r"no layer for Grad-CAM \(16 px: data.resolution 16: model 'vgg11' cannot work at it"):
        common_layer(moving[:1])


def test_a_run_in_phases_is_explained_at_the_resolution_that_its_weights_were_trained_at(runs: list[RunDirectory]) -> None:
    phases = [{"name": "first", "set": {"data.resolution": 48}}, {"name": "second", "set": {"data.resolution": 64}}]
    recipe = runs[1].recipe().model_dump(mode="json") | {"phases": phases}
    recipe["data"]["resolution"] = 32
    runs[1].storage.write_bytes("recipe.yaml", dump(Recipe.model_validate(recipe)).encode())
    assert trained_recipe(runs[1]).data.resolution == 48
    found = explain_run(runs[1], 1, ["saliency"])  # its checkpoints are of the first phase
    assert found.resolution == 48
    assert load_kept(runs[1]).images.shape == (1, 48, 48, 3)
    assert list(explain_across([runs[1], runs[0]], 1, ["saliency"]).runs) == [32, 48]


def test_a_method_that_fails_leaves_the_others_alive(runs: list[RunDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    def explain_but_for_gradcam(*arguments: Any, **named: Any) -> Maps:
        if "gradcam" in arguments:
            raise RuntimeError("shape '[14, 14]' is invalid\nsomewhere")
        return explain(*arguments, **named)

    monkeypatch.setattr(cell, "explain", explain_but_for_gradcam)
    found = explain_run(runs[0], 2, ["gradcam", "saliency"])
    assert [report.problem for report in found.methods] == ["shape '[14, 14]' is invalid", None]
    assert found.usable == ["saliency"]
    assert list(load_kept(runs[0]).grid) == ["saliency"]
    assert explain_run(runs[0], 2, ["gradcam", "saliency"], layer="features").methods != found.methods


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
    with pytest.raises(UserError, match="both are tiny_cnn at 32 px"):
        explain_file([runs[0], runs[0]], file)
    with pytest.raises(UserError, match=r"runs of several models \(test_resnet, tiny_cnn\)"):
        explain_file([runs[0], RunDirectory.open(str(tmp_path / "runs/test_resnet-64"))], file)


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
