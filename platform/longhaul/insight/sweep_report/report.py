"""Makes the report of a sweep: reads everything, fills in what is missing, draws, and writes it below the sweep.

<storage>/<sweep>/report/
    index.html      the page; it needs nothing but the files beside it
    *.png           its pictures
    table.csv       its table of cells
    files.json      what this report consists of, so that the next one can clear away what it no longer has
    <family>/<model>/<resolution>/    each cell's own (`cell_pages`)
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import longhaul
from longhaul.errors import LonghaulError
from longhaul.insight.profile import Conditions
from longhaul.insight.sweep_report.cell_pages import Anatomies, write_cell
from longhaul.insight.sweep_report.cells import Cell, read_cells
from longhaul.insight.sweep_report.fronts import charts
from longhaul.insight.sweep_report.gathering import (
    Explained,
    fill_explanations,
    fill_profiles,
    load_explained,
    to_explain,
    to_profile,
)
from longhaul.insight.sweep_report.page import Page, facts, measured_on, table_rows
from longhaul.insight.sweep_report.population import Population, read_population
from longhaul.insight.sweep_report.sections import Album, sections
from longhaul.insight.sweep_report.tables import csv_bytes
from longhaul.insight.sweep_report.templates import PAGE, render
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.sweep_directory import SweepDirectory, SweepState
from longhaul.storage import Storage

FOLDER, INDEX = "report", "index.html"
_FILES = "files.json"

Begin = Callable[[str, int], Callable[[], None]]
"""Begins a stretch of work of so many parts, such as ("profiles", 12); what it gives is called after each."""


@dataclass(frozen=True)
class Wanted:
    """What is made where it is missing; what is there already is shown in any case.

    Attributes:
        profile: measure finished cells under `conditions`.
        explain: explain finished cells on so many `images`.
    """

    profile: bool = True
    explain: bool = True
    images: int = 6
    conditions: Conditions = field(default_factory=Conditions)


def _quiet(_task: str, _parts: int) -> Callable[[], None]:
    return lambda: None


def write_report(sweep: SweepDirectory, wanted: Wanted = Wanted(), begin: Begin = _quiet) -> str:
    """Write the report of a sweep as it stands; returns the page's address.

    A cell of which something is damaged, or that cannot be profiled or explained, says so on the page.

    Args:
        sweep: an existing one, finished or not.
        wanted: what may be measured and computed for it.
        begin: is told how far it is.

    Raises:
        IntegrityError: the sweep's own state is damaged.
    """
    state = sweep.state()
    problems: list[tuple[str, str]] = []
    asked = _asked(sweep, problems)
    searched = asked is not None and asked.search is not None
    cells = read_cells(sweep, state, searched=searched, advance=begin("reading cells", len(state.cells)))
    if wanted.profile and to_profile(cells):
        cells = fill_profiles(cells, wanted.conditions, begin("profiles", len(to_profile(cells))))
    lines = to_explain(cells, state.direction)
    if wanted.explain and lines:
        told = fill_explanations(lines, wanted.images, begin("explanations", sum(map(len, lines))))
        cells = [replace(c, problems=(*c.problems, told[c.key])) if c.key in told else c for c in cells]
    explained = []
    for line in lines:
        found, unread = load_explained(line)
        explained += [found] if found else []
        cells = [replace(c, problems=(*c.problems, *unread.get(c.key, ()))) for c in cells]
    folder = sweep.storage.child(FOLDER)
    cells, written = _cell_folders(folder, cells, state, begin("cells' own pages", len(cells)))
    drawn = begin("page", 1)
    files = _page_files(sweep, cells, state, asked, explained, problems)
    for name, data in files.items():
        folder.write_bytes(name, data)
    drawn()
    _clear(folder, [*written, *files])
    return f"{folder.uri}/{INDEX}"


def _asked(sweep: SweepDirectory, problems: list[tuple[str, str]]) -> SweepRecipe | None:
    try:
        return sweep.recipe()
    except (LonghaulError, OSError, ValueError) as error:
        problems.append(("sweep.yaml", f"what was asked for cannot be read: {' '.join(str(error).split())}"))
        return None


def _population(sweep: SweepDirectory, problems: list[tuple[str, str]]) -> Population | None:
    try:
        return read_population(sweep)
    except (LonghaulError, OSError) as error:
        problems.append(("population", f"its course cannot be read: {' '.join(str(error).split())}"))
        return None


def _cell_folders(
    folder: Storage, cells: Sequence[Cell], state: SweepState, advance: Callable[[], None]
) -> tuple[list[Cell], list[str]]:
    """Each cell's own folder; the cells with their counts, and the names of all files."""
    anatomies = Anatomies(cells)
    counted, written = [], []
    for cell in cells:
        with_count, names = write_cell(folder.child(cell.folder), cell, state, anatomies)
        counted.append(with_count)
        written += [f"{cell.folder}/{name}" for name in names]
        advance()
    return counted, written


def _page_files(
    sweep: SweepDirectory,
    cells: Sequence[Cell],
    state: SweepState,
    asked: SweepRecipe | None,
    lines: Sequence[Sequence[Explained]],
    problems: list[tuple[str, str]],
) -> dict[str, bytes]:
    """The page, its pictures and its table, the page last: what it shows is there when it appears."""
    album, drawn = Album(), charts(cells, state.goal)
    shown = sections(cells, state, asked, lines, drawn, _population(sweep, problems), album)
    columns, rows, reasons = table_rows(cells, state)
    told = [*problems, *((cell.label, problem) for cell in cells for problem in cell.problems)]
    page = Page(
        name=sweep.name,
        goal=state.goal,
        drawn=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=longhaul.__version__,
        facts=tuple(facts(cells, state, asked, drawn)),
        notes=tuple(state.notes),
        measured=measured_on(cells),
        columns=tuple(columns),
        rows=tuple(rows),
        reasons=tuple(reasons),
        sections=tuple(shown),
        problems=tuple(told),
    )
    return {**album.files, "table.csv": csv_bytes(cells, state), INDEX: render(PAGE, {"page": page})}


def _clear(folder: Storage, files: Sequence[str]) -> None:
    """Delete what the last report had and this one has not, and nothing else; then note what this one has."""
    try:
        former = json.loads(folder.read_bytes(_FILES))
    except (FileNotFoundError, ValueError):
        former = []
    known = former if isinstance(former, list) else []
    for name in set(map(str, known)) - set(files):
        if ".." not in name.split("/") and not name.startswith("/"):
            with contextlib.suppress(OSError):
                folder.delete_file(name)
    folder.write_bytes(_FILES, (json.dumps(sorted(files), indent=1) + "\n").encode())
