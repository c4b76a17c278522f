"""The course of a population, drawn from what its training has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sweep_maker import GOAL, make_search

from longhaul.errors import IntegrityError
from longhaul.insight.sweep_report.population import FILE, Population, population_figure, read_population
from longhaul.resilience.sweep_directory import SweepDirectory

from .conftest import AUGMENT, LR, write_lineage


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SweepDirectory:
    return make_search(str(tmp_path_factory.mktemp("population")), trials=1)


def test_scores_and_every_value_that_was_changed_are_drawn_with_the_copies(search: SweepDirectory) -> None:
    write_lineage(search)
    population = read_population(search)
    assert population is not None
    assert (population.changed, population.copies) == ([LR, AUGMENT], 2)
    figure = population_figure(population, GOAL)
    assert figure is not None
    scores, rates, kinds = figure.axes
    rings = [line for line in rates.get_lines() if line.get_linestyle() == "None" and np.size(line.get_xdata())]
    assert [(np.asarray(ring.get_xdata()).tolist(), np.asarray(ring.get_ydata()).tolist()) for ring in rings] == [
        ([2.0, 4.0], [0.08, 0.01])
    ]
    steps = [np.asarray(line.get_ydata()).tolist() for line in rates.get_lines() if line.get_drawstyle() == "steps-post"]
    assert steps == [[1e-3, 1e-3], [0.1, 0.08, 0.01, 0.01], [4e-3, 4e-3]]
    marked = [np.ravel(line.get_xydata()).tolist() for line in scores.get_lines() if line.get_linestyle() == "None"]
    assert marked == [[2.0, 0.3], [4.0, 0.5]]  # where it stood before it took over
    assert rates.get_yscale() == "log"
    assert [text.get_text() for text in kinds.get_yticklabels()] == ["crop", "none"]


def test_a_damaged_course_is_named(search: SweepDirectory) -> None:
    for content in (b'{"members": [{"number": 1}]}', b"[]", b""):
        search.storage.write_bytes(FILE, content)
        with pytest.raises(IntegrityError, match="population/lineage"):
            read_population(search)


def test_a_sweep_without_a_population_is_passed_over(tmp_path: Path) -> None:
    assert read_population(make_search(str(tmp_path), trials=1)) is None
    assert population_figure(Population(), GOAL) is None
