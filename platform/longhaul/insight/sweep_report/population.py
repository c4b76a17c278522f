"""A population's course: the score and each value that was changed, over the epochs, a line a member.

Population based training writes `<sweep>/population/lineage.json`; only what is drawn here is read of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import BaseModel, Field, ValidationError

from longhaul.errors import IntegrityError
from longhaul.insight.curves import CYCLE, DASHES, GREY
from longhaul.insight.sweep_report.cells import plain
from longhaul.insight.sweep_report.look import dress, panels
from longhaul.resilience.sweep_directory import POPULATION, SweepDirectory

FILE = f"{POPULATION}/lineage.json"
_NAMED = 28  # members that a legend still tells apart
_CLOSE = 1e-6  # epochs
_DECADES = 20.0  # values that reach over such a factor get a logarithmic axis


class Donor(BaseModel):
    """The member whose weights a generation begins with."""

    member: int


class Generation(BaseModel):
    """A stretch of a member's training under `values` (by field), from the epoch `since` on; without a donor, its first."""

    values: dict[str, Any]
    since: float = 0.0
    donor: Donor | None = None


class Member(BaseModel):
    """One member: its generations, and its scores as (epoch, value)."""

    number: int
    generations: list[Generation] = Field(min_length=1)
    scores: list[tuple[float, float]] = []


class Population(BaseModel):
    """All members; `compared` is the epoch of the last comparison."""

    compared: float = 0.0
    members: list[Member] = []

    @property
    def changed(self) -> list[str]:
        """The fields that have another value in a later generation of any member than in the one before."""
        found: dict[str, None] = {}
        for member in self.members:
            for former, later in zip(member.generations, member.generations[1:], strict=False):
                found |= dict.fromkeys(name for name, value in later.values.items() if former.values.get(name) != value)
        return list(found)

    @property
    def copies(self) -> int:
        """How many times a member has gone on from another's weights."""
        return sum(generation.donor is not None for member in self.members for generation in member.generations)


def read_population(sweep: SweepDirectory) -> Population | None:
    """That of a sweep; None where it has none.

    Raises:
        IntegrityError: the file is damaged.
    """
    try:
        return Population.model_validate_json(sweep.storage.read_bytes(FILE))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise IntegrityError(f"{sweep.storage.uri}/{FILE}: {error.errors()[0]['msg']}") from None


def population_figure(population: Population, goal: str) -> Figure | None:
    """A panel for the score, one for each field that was changed; a ring is where a member took over another's weights.

    Args:
        population: as it stands.
        goal: the metric that the scores are of.
    """
    if not any(member.scores for member in population.members):
        return None
    fields = population.changed
    figure, grid = panels(1 + len(fields))
    last = max([population.compared, *(epoch for member in population.members for epoch, _ in member.scores)])
    for member in population.members:
        _draw_scores(grid[0], member)
    dress(grid[0], x="epoch", y=goal, metric=goal)
    for name, axes in zip(fields, grid[1:], strict=True):
        _draw_values(axes, population.members, name, last)
        dress(axes, x="epoch", y=name)
    handles = [Line2D([], [], label=f"member {member.number}", **_look(member)) for member in population.members[:_NAMED]]
    handles += [Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="goes on from a copy")]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def _draw_scores(axes: Axes, member: Member) -> None:
    epochs, values = [epoch for epoch, _ in member.scores], [value for _, value in member.scores]
    axes.plot(epochs, values, linewidth=1.4, marker=".", markersize=4, **_look(member))
    for generation in member.generations:
        before = [score for score in member.scores if score[0] <= generation.since + _CLOSE]
        if generation.donor is not None and before:  # compared there, and found among the worst
            _draw_rings(axes, member, [before[-1][0]], [before[-1][1]])


def _draw_values(axes: Axes, members: Sequence[Member], name: str, last: float) -> None:
    """Steps: a value holds until the member's next generation; what is no number has a line of the axis for itself."""
    given = [generation.values[name] for member in members for generation in member.generations if name in generation.values]
    numbers = [float(value) for value in given if isinstance(value, int | float) and not isinstance(value, bool)]
    texts = sorted({plain(value) for value in given})
    in_words = len(numbers) < len(given)
    if in_words:
        axes.set_yticks(range(len(texts)), [text[:24] for text in texts])
    elif min(numbers) > 0 and max(numbers) / min(numbers) >= _DECADES:
        axes.set_yscale("log")
    for place, member in enumerate(members):
        stretches = [generation for generation in member.generations if name in generation.values]
        values = [generation.values[name] for generation in stretches]
        aside = 0.3 * (place / max(len(members) - 1, 1) - 0.5)  # members of one choice beside each other
        heights = [texts.index(plain(value)) + aside for value in values] if in_words else values
        epochs = [generation.since for generation in stretches]
        if epochs:
            axes.step([*epochs, max(last, epochs[-1])], [*heights, heights[-1]], where="post", linewidth=1.4, **_look(member))
        copied = [place for place, generation in enumerate(stretches) if generation.donor is not None]
        _draw_rings(axes, member, [epochs[i] for i in copied], [heights[i] for i in copied])


def _draw_rings(axes: Axes, member: Member, epochs: Sequence[float], heights: Sequence[float]) -> None:
    colour = _look(member)["color"]
    axes.plot(epochs, heights, linestyle="", marker="o", markersize=5.5, markerfacecolor="white", color=colour, zorder=3)


def _look(member: Member) -> dict[str, Any]:
    return {
        "color": CYCLE[member.number % len(CYCLE)],
        "linestyle": DASHES[member.number // len(CYCLE) % len(DASHES)],
    }
