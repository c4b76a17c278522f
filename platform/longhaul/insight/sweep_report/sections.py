"""The page's sections after the table of cells; one without anything to show is left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from longhaul.insight.curves import png
from longhaul.insight.explain.across import Consistency
from longhaul.insight.explain.run_pictures import TITLES
from longhaul.insight.sweep_report.accuracy import accuracy_figure
from longhaul.insight.sweep_report.blocks import Block, picture
from longhaul.insight.sweep_report.cells import Cell, families
from longhaul.insight.sweep_report.confusion import large_figure, small_multiples
from longhaul.insight.sweep_report.explanations import consistency_of, consistency_pictures, gallery
from longhaul.insight.sweep_report.fronts import Chart, front_figure
from longhaul.insight.sweep_report.gathering import Explained
from longhaul.insight.sweep_report.groups import test_metric
from longhaul.insight.sweep_report.learning import learning_figure
from longhaul.insight.sweep_report.look import DPI
from longhaul.insight.sweep_report.page import Section
from longhaul.insight.sweep_report.population import Population, population_figure
from longhaul.insight.sweep_report.precision_recall import (
    MAP,
    MAP50,
    best_figure,
    best_text,
    by_fields_figure,
    by_resolution_figure,
)
from longhaul.insight.sweep_report.search import fields_figure, progress_figure, varied_fields
from longhaul.insight.sweep_report.tables import agreement_table, folds_table, layers_table
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.sweep_directory import SweepState

_SIDES = "Where the sides of Grad-CAM's maps differ, a coarse map is compared with a finer one: some of what differs is the grid."
_HOLLOW = "Hollow marks are cells that were not trained to their end, or of which a fold was not."


class Album:
    """The pictures of a page, by file name."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def add(self, file: str, drawn: Figure | bytes | None, *, title: str = "", alt: str, caption: str = "") -> list[Block]:
        """A block with the picture; none where nothing was drawn."""
        if drawn is None:
            return []
        data = drawn if isinstance(drawn, bytes) else png(drawn, DPI, quick=True)
        self.files[file] = data
        return [picture(file, data, title=title, alt=alt, caption=caption)]


def sections(
    cells: Sequence[Cell],
    state: SweepState,
    asked: SweepRecipe | None,
    lines: Sequence[Sequence[Explained]],
    charts: Sequence[Chart],
    population: Population | None,
    album: Album,
) -> list[Section]:
    """All of them, their pictures in `album`.

    Args:
        cells: of the sweep, completely read.
        state: the sweep's.
        asked: its recipe; None where that cannot be read.
        lines: the explained cells, each model's ascending by resolution.
        charts: as `fronts.charts` gives them.
        population: the course of population based training; None where there was none.
        album: takes the pictures.
    """
    found = [
        _accuracy(cells, state, album),
        _fronts(charts, state, album),
        *_explanations(lines, album),
        _confusion(cells, state, album),
        _detection(cells, state, asked, album),
        _learning(cells, state, album),
        _search(cells, state, asked, album),
        _population(population, state, album),
        _folds(cells, state),
    ]
    return [section for section in found if section.blocks]


def _accuracy(cells: Sequence[Cell], state: SweepState, album: Album) -> Section:
    text = f"Solid: {state.goal}, of the validation split, which chose each cell's checkpoint; dashed: {test_metric(state.goal)}."
    if any(cell.trial is not None for cell in cells):
        text = f"Each mark is a trial's {state.goal}, of the validation split, whatever else it has varied."
    folds = (
        " Bars: one standard deviation over the folds."
        if any(cell.fold is not None and cell.trial is None for cell in cells)
        else ""
    )
    drawn = accuracy_figure(cells, state.goal)
    blocks = album.add("resolution.png", drawn, alt=f"{state.goal} against resolution, a panel a family, a line a model")
    return Section("resolution", f"{state.goal} against resolution", (f"{text} {_HOLLOW}{folds}",), tuple(blocks))


def _fronts(charts: Sequence[Chart], state: SweepState, album: Album) -> Section:
    blocks: list[Block] = []
    for chart in charts:
        drawn = front_figure(chart, state.goal, state.direction)
        alt = f"{test_metric(state.goal)} against {chart.name}, {len(chart.points)} cells"
        blocks += album.add(f"front-{chart.name}.png", drawn, title=f"Against {chart.name}", alt=alt)
    text = "Finished cells alone. On the front, numbered and joined by steps, are those that no other cell beats in both."
    return Section("fronts", f"What {test_metric(state.goal)} costs", (text,), tuple(blocks))


def _explanations(lines: Sequence[Sequence[Explained]], album: Album) -> list[Section]:
    across: dict[str, Consistency] = {}
    galleries: list[Block] = []
    for number, line in enumerate(lines, 1):
        name = line[0].cell.line
        consistency = consistency_of(line)
        if consistency is not None:
            across[name] = consistency
        title = f"{name}: the same images at {', '.join(str(one.explanation.resolution) for one in line)} px"
        for method, data in gallery(line).items():
            file = f"heat-{number:02d}-{_plain(name)}-{method}.png"
            alt = f"{TITLES[method]} of {name} on the same images over its resolutions"
            galleries += album.add(file, data, title=title, alt=alt)
            title = ""
    counts = sorted({len(one.images) for one in across.values()})
    images = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else ""
    texts: tuple[str, ...] = (
        "Heat maps of the same image at a lower and at the model's highest resolution, on a common grid: Spearman's rank "
        f"correlation of their cells, the mean over {images} images with its 95 % interval. Chance: maps of different images.",
    )
    blocks: list[Block] = []
    for method, data in consistency_pictures(across).items():
        alt = f"agreement of {TITLES[method]} maps with those at the highest resolution, a line a model"
        blocks += album.add(f"consistency-{method}.png", data, alt=alt)
    table = agreement_table(across)
    blocks += [Block(title="In numbers", table=table)] if table is not None else []
    looked_at = layers_table(lines)
    if looked_at is not None and across:
        blocks.append(Block(title="What Grad-CAM looked at", table=looked_at))
        if any(row[-1] for row in looked_at.rows):
            texts = (*texts, _SIDES)
    told = ("Each map explains the true class; below it stands what the model answered.", *_doubts(lines))
    return [
        Section("consistency", "Consistency of explanations across resolutions", texts, tuple(blocks)),
        Section("heat-maps", "Heat maps", told, tuple(galleries)),
    ]


def _doubts(lines: Sequence[Sequence[Explained]]) -> list[str]:
    """What speaks against single maps: methods that could not be used, or whose maps do not depend on what was learnt."""
    unusable: list[str] = []
    unchanged: dict[str, list[str]] = {}
    for one in (one for line in lines for one in line):
        for report in one.explanation.methods:
            if report.problem is not None:
                unusable.append(f"{TITLES[report.method]} of {one.cell.label} ({report.problem})")
            elif report.sanity is not None and not report.sanity.passes:
                unchanged.setdefault(f"{TITLES[report.method]} of {one.cell.line}", []).append(f"{one.explanation.resolution}")
    found = [f"Not to be had: {'; '.join(unusable)}."] if unusable else []
    if unchanged:
        told = "; ".join(f"{name} at {', '.join(sizes)} px" for name, sizes in sorted(unchanged.items()))
        found.append(f"Much the same with random weights, so they say little about the model: {told}.")
    return found


def _confusion(cells: Sequence[Cell], state: SweepState, album: Album) -> Section:
    with_matrix = [cell for cell in cells if cell.confusion is not None]
    best = next((cell for cell in with_matrix if state.best is not None and cell.key == state.best.key), None)
    blocks: list[Block] = []
    if best is not None:
        blocks += album.add(
            "confusion-best.png", large_figure(best), title="The best cell", alt=f"confusion matrix of {best.label}"
        )
    title = "All finished cells by family"
    for family in families(with_matrix):
        drawn = small_multiples([cell for cell in with_matrix if cell.family == family])
        alt = f"confusion matrices of all finished cells of {family}"
        blocks += album.add(f"confusion-{_plain(family)}.png", drawn, title=title, alt=alt, caption=family)
        title = ""
    text = "On the test split. Rows are the truth, columns the answers; dark is a large share of the true class."
    return Section("confusion", "Confusion matrices", (text,), tuple(blocks))


def _detection(cells: Sequence[Cell], state: SweepState, asked: SweepRecipe | None, album: Album) -> Section:
    blocks = album.add(
        "precision-recall.png", best_figure(cells, state.direction), alt="precision over recall of the best cells, a line a class"
    )
    blocks += album.add(
        "average-precision-resolution.png",
        by_resolution_figure(cells),
        title="Average precision against resolution",
        alt=f"{MAP} and {MAP50} against resolution, a line a model",
        caption=f"Solid: {MAP}, the mean over IoU 0.5 to 0.95; dashed: {MAP50}, at IoU 0.5. {_HOLLOW}",
    )
    blocks += album.add(
        "average-precision.png",
        by_fields_figure(cells, varied_fields(asked, cells)),
        title="Average precision against what varies",
        alt=f"{MAP} against each field that varies",
        caption=f"{MAP}: the mean over IoU 0.5 to 0.95. {_HOLLOW}",
    )
    text = best_text(cells, state.direction)
    return Section("detection", "Precision and recall of the detectors", (text,), tuple(blocks))


def _learning(cells: Sequence[Cell], state: SweepState, album: Album) -> Section:
    drawn = learning_figure(cells, state.goal, state.best.key if state.best is not None else None)
    blocks = album.add("learning.png", drawn, alt=f"{state.goal} by epoch, a panel a model")
    text = "A curve that ends in a cross was cut short: stopped, or failed. What a restart undid is left out."
    return Section("learning", "Learning curves", (text,), tuple(blocks))


def _search(cells: Sequence[Cell], state: SweepState, asked: SweepRecipe | None, album: Album) -> Section:
    fields = varied_fields(asked, cells)
    blocks = album.add("fields.png", fields_figure(cells, fields, state.goal), alt=f"{state.goal} against each field that varies")
    if asked is not None and asked.search is not None:
        drawn = progress_figure(cells, state.goal, state.direction)
        blocks += album.add("trials.png", drawn, title="Over the trials", alt=f"{state.goal} of each trial, and the best so far")
    return Section("fields", f"{state.goal} against what varies", (_HOLLOW,), tuple(blocks))


def _population(population: Population | None, state: SweepState, album: Album) -> Section:
    drawn = population_figure(population, state.goal) if population is not None else None
    alt = f"{state.goal} and the values that were changed, by epoch, a line a member"
    blocks = album.add("population.png", drawn, alt=alt)
    count, copies = (len(population.members), population.copies) if population is not None else (0, 0)
    text = f"{count} members, compared every few epochs. {copies} times one of the worst went on from a copy of one of the best, "
    told = "with changed values: a ring, where it stood among the scores, and at the value that it got."
    return Section("population", "The population", (text + told,), tuple(blocks))


def _folds(cells: Sequence[Cell], state: SweepState) -> Section:
    table = folds_table(cells, state)
    text = "Mean and standard deviation (of a sample) over the folds that have a value."
    return Section("folds", "Over the folds", (text,), (Block(table=table),) if table is not None else ())


def _plain(name: str) -> str:
    """For a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60]
