"""One model trained at several resolutions: whether it looks at the same things, in numbers and side by side.

Every pair of resolutions is compared on the common grid (`consistency`), image by image, for each method, and set against
chance: maps of different images. All of it comes from the runs' explanations; a run that has none yet is explained first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict

from longhaul.errors import UserError
from longhaul.insight.explain.attribution import METHODS, Method
from longhaul.insight.explain.cell import IMAGES, common_layer_or_none, explain_run
from longhaul.insight.explain.consistency import Agreement, agreement
from longhaul.insight.explain.consistency_picture import consistency_picture
from longhaul.insight.explain.heat_maps import Panel, panels_picture
from longhaul.insight.explain.record import Explanation, Kept, load_kept
from longhaul.insight.explain.run_pictures import TITLES, answer_caption, heat_panel, is_right
from longhaul.insight.trained_recipe import trained_recipe
from longhaul.resilience.run_directory import RunDirectory

log = logging.getLogger(__name__)


class Pair(BaseModel):
    """Two resolutions in pixels, `low` below `high`, and how far the maps of a method agree between them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method
    low: int
    high: int
    agreement: Agreement


class Consistency(BaseModel):
    """How consistent a model's explanations stay across resolutions.

    Attributes:
        model: its name.
        grid: cells along a side of the common grid.
        runs: names by resolution in pixels, ascending.
        images: ids of the test images.
        layer: that Grad-CAM looked at in all of the runs; None where it is not among the methods.
        sides: that layer's cells along a side, by resolution.
        pairs: every pair of resolutions, for every method that all of the runs have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    grid: int
    runs: dict[int, str]
    images: tuple[str, ...]
    layer: str | None = None
    sides: dict[int, int] = {}
    pairs: tuple[Pair, ...]

    def to_highest(self, method: Method) -> list[Pair]:
        """Each lower resolution with the highest one, ascending."""
        highest = max(self.runs)
        return [pair for pair in self.pairs if pair.method == method and pair.high == highest]


def one_model(runs: Sequence[RunDirectory]) -> list[RunDirectory]:
    """The runs ascending by the resolution that their weights were trained at.

    Raises:
        UserError: they are of several models, or two are of one resolution.
    """
    recipes = {run.uri: trained_recipe(run) for run in runs}
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        recipe = recipes[run.uri]
        place = (recipe.model.name, recipe.data.resolution)
        if place in seen:
            raise UserError(f"runs {seen[place]} and {run.name}: both are {place[0]} at {place[1]} px", "Give one of them")
        seen[place] = run.name
    models = sorted({model for model, _ in seen})
    if len(models) > 1:
        raise UserError(f"runs of several models ({', '.join(models)})", "Give the runs of one model at several resolutions")
    return sorted(runs, key=lambda run: recipes[run.uri].data.resolution)


def explain_across(
    runs: Sequence[RunDirectory], images: int = IMAGES, methods: Sequence[Method] = METHODS, seed: int = 0
) -> Consistency:
    """Compare the explanations of one model's runs at several resolutions, on the same test images and the same layer.

    Args:
        runs: finished ones of one model over the same data, each at another resolution.
        images: how many; see `explain_run`.
        methods: which.
        seed: see `explain_run`.

    Raises:
        UserError: fewer than two resolutions, two runs at one, several models or data sets, or as `explain_run`.
    """
    if len(runs) < 2:
        raise UserError("one run: nothing to compare it with", "Give runs of the same model at other resolutions too")
    ascending, layer = one_model(runs), common_layer_or_none(runs, methods)
    explained = [explain_run(run, images, methods, seed, layer=layer) for run in ascending]
    return compare(explained, [load_kept(run) for run in ascending], methods)


def compare(explained: Sequence[Explanation], kept: Sequence[Kept], methods: Sequence[Method] = METHODS) -> Consistency:
    """The same from explanations that are at hand; ascending by resolution.

    Maps of Grad-CAM at different layers are not compared: they answer different questions.

    Raises:
        UserError: they are of other images.
    """
    first = explained[0]
    for other in explained[1:]:
        if [image.id for image in other.images] != [image.id for image in first.images]:
            fix = "Give runs of the same data.root, seed and shares, so that they have the same test split"
            raise UserError(f"runs {first.run} and {other.run}: have other test images", fix)
    shared = [method for method in methods if all(method in one.grid for one in kept)]
    looked = [one.looked_at for one in explained]
    if "gradcam" in shared and len({layer for layer, _ in filter(None, looked)}) > 1:
        told = ", ".join(f"{at[0]} at {one.resolution} px" for one, at in zip(explained, looked, strict=True) if at)
        log.warning("%s: Grad-CAM is not compared, it looked at %s; explain the runs together", first.model, told)
        shared.remove("gradcam")
    sides = {one.resolution: at[1] for one, at in zip(explained, looked, strict=True) if at and "gradcam" in shared}
    layer = looked[0][0] if looked[0] and "gradcam" in shared else None
    pairs = [
        Pair(
            method=method,
            low=explained[low].resolution,
            high=explained[high].resolution,
            agreement=agreement(kept[low].grid[method], kept[high].grid[method]),
        )
        for method in shared
        for low, high in combinations(range(len(explained)), 2)
    ]
    runs = {one.resolution: one.run for one in explained}
    ids = tuple(image.id for image in first.images)
    return Consistency(model=first.model, grid=first.grid, runs=runs, images=ids, layer=layer, sides=sides, pairs=tuple(pairs))


def draw_across(explained: Sequence[Explanation], kept: Sequence[Kept], consistency: Consistency | None) -> dict[str, bytes]:
    """PNG files by name: for each method the images over the resolutions; agreement over resolution, where it was measured.

    Args:
        explained: of each run, ascending by resolution.
        kept: the maps of each.
        consistency: what `compare` gives.
    """
    pictures = {}
    first = explained[0]
    names = [f"class {first.classes[image.target]}" for image in first.images]
    for method in METHODS:
        if all(method in one.shown for one in kept):
            rows = [[_panel(one, maps, i, method) for one, maps in zip(explained, kept, strict=True)] for i in range(len(names))]
            title = f"{first.model}: {TITLES[method]} at {len(explained)} resolutions"
            note = _note(explained, method)
            told = [_head(one, method) for one in explained]
            pictures[f"explain_{method}.png"] = panels_picture(rows, told, names, title=title, note=note)
    if consistency is not None and consistency.pairs:
        drawn = {
            TITLES[m]: [(p.low, p.agreement) for p in consistency.to_highest(m)] for m in METHODS if consistency.to_highest(m)
        }
        title = f"{consistency.model}: maps at each resolution against those at {max(consistency.runs)} px"
        pictures["consistency.png"] = consistency_picture(drawn, title=title, images=len(consistency.images))
    return pictures


def _head(explanation: Explanation, method: Method) -> str:
    looked = explanation.looked_at if method == "gradcam" else None
    return f"{explanation.resolution} px" + ("" if looked is None else f"\n{looked[1]} x {looked[1]} cells")


def _note(explained: Sequence[Explanation], method: Method) -> str:
    """What is below a method's picture; the layers of Grad-CAM, where there are several because runs were explained alone."""
    note = "each map explains the class named on its left; below it the answer"
    layers = dict.fromkeys(one.looked_at[0] for one in explained if one.looked_at is not None) if method == "gradcam" else {}
    return note + (f"; layer {', '.join(layers)}" if layers else "")


def _panel(explanation: Explanation, kept: Kept, place: int, method: Method) -> Panel:
    panel = heat_panel(kept, place, method)
    return Panel(panel.image, panel.heat, panel.signed, answer_caption(explanation, place), is_right(explanation, place))
