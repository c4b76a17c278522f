"""One model trained at several resolutions: whether it looks at the same things, in numbers and side by side.

Every pair of resolutions is compared on the common grid (`consistency`), image by image, for each method, and set against
chance: maps of different images. All of it comes from the runs' explanations; a run that has none yet is explained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from pydantic import BaseModel, ConfigDict

from longhaul.errors import UserError
from longhaul.insight.explain.attribution import METHODS, Method
from longhaul.insight.explain.cell import IMAGES, explain_run
from longhaul.insight.explain.consistency import Agreement, agreement
from longhaul.insight.explain.consistency_picture import consistency_picture
from longhaul.insight.explain.heat_maps import Panel, panels_picture
from longhaul.insight.explain.record import Explanation, Kept, load_kept
from longhaul.insight.explain.run_pictures import TITLES, answer_caption, heat_panel, is_right
from longhaul.resilience.run_directory import RunDirectory


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
        pairs: every pair of resolutions, for every method that all of the runs have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    grid: int
    runs: dict[int, str]
    images: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def to_highest(self, method: Method) -> list[Pair]:
        """Each lower resolution with the highest one, ascending."""
        highest = max(self.runs)
        return [pair for pair in self.pairs if pair.method == method and pair.high == highest]


def explain_across(
    runs: Sequence[RunDirectory], images: int = IMAGES, methods: Sequence[Method] = METHODS, seed: int = 0
) -> Consistency:
    """Compare the explanations of one model's runs at several resolutions, on the same test images.

    Args:
        runs: finished ones of one model over the same data, each at another resolution.
        images: how many; see `explain_run`.
        methods: which.
        seed: see `explain_run`.

    Raises:
        UserError: fewer than two resolutions, two runs at one, several models or data sets, or as `explain_run`.
    """
    _check_one_model(runs)
    ascending = sorted(runs, key=lambda run: run.recipe().data.resolution)
    explained = [explain_run(run, images, methods, seed) for run in ascending]
    return compare(explained, [load_kept(run) for run in ascending], methods)


def compare(explained: Sequence[Explanation], kept: Sequence[Kept], methods: Sequence[Method] = METHODS) -> Consistency:
    """The same from explanations that are at hand; ascending by resolution.

    Raises:
        UserError: they are of other images.
    """
    first = explained[0]
    for other in explained[1:]:
        if [image.id for image in other.images] != [image.id for image in first.images]:
            fix = "Give runs of the same data.root, seed and shares, so that they have the same test split"
            raise UserError(f"runs {first.run} and {other.run}: have other test images", fix)
    shared = [method for method in methods if all(method in one.grid for one in kept)]
    pairs = [
        Pair(
            method=method,
            low=explained[low].resolution,
            high=explained[high].resolution,
            agreement=agreement(kept[low].grid[method], kept[high].grid[method], first.seed),
        )
        for method in shared
        for low, high in combinations(range(len(explained)), 2)
    ]
    runs = {one.resolution: one.run for one in explained}
    ids = tuple(image.id for image in first.images)
    return Consistency(model=first.model, grid=first.grid, runs=runs, images=ids, pairs=tuple(pairs))


def draw_across(explained: Sequence[Explanation], kept: Sequence[Kept], consistency: Consistency | None) -> dict[str, bytes]:
    """PNG files by name: for each method the images over the resolutions; agreement over resolution, where it was measured.

    Args:
        explained: of each run, ascending by resolution.
        kept: the maps of each.
        consistency: what `compare` gives.
    """
    pictures = {}
    first = explained[0]
    heads = [f"{one.resolution} px" for one in explained]
    names = [f"class {first.classes[image.target]}" for image in first.images]
    for method in METHODS:
        if all(method in one.shown for one in kept):
            rows = [[_panel(one, maps, i, method) for one, maps in zip(explained, kept, strict=True)] for i in range(len(names))]
            title = f"{first.model}: {TITLES[method]} at {len(explained)} resolutions"
            note = "each map explains the class named on its left; below it the answer"
            pictures[f"explain_{method}.png"] = panels_picture(rows, heads, names, title=title, note=note)
    if consistency is not None and consistency.pairs:
        drawn = {
            TITLES[m]: [(p.low, p.agreement) for p in consistency.to_highest(m)] for m in METHODS if consistency.to_highest(m)
        }
        title = f"{consistency.model}: maps at each resolution against those at {max(consistency.runs)} px"
        pictures["consistency.png"] = consistency_picture(drawn, title=title, images=len(consistency.images))
    return pictures


def _panel(explanation: Explanation, kept: Kept, place: int, method: Method) -> Panel:
    panel = heat_panel(kept, place, method)
    return Panel(panel.image, panel.heat, panel.signed, answer_caption(explanation, place), is_right(explanation, place))


def _check_one_model(runs: Sequence[RunDirectory]) -> None:
    if len(runs) < 2:
        raise UserError("one run: nothing to compare it with", "Give runs of the same model at other resolutions too")
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        recipe = run.recipe()
        place = (recipe.model.name, recipe.data.resolution)
        if place in seen:
            raise UserError(f"runs {seen[place]} and {run.name}: both are {place[0]} at {place[1]} px", "Give one of them")
        seen[place] = run.name
    models = sorted({model for model, _ in seen})
    if len(models) > 1:
        raise UserError(f"runs of several models ({', '.join(models)})", "Give the runs of one model at several resolutions")
