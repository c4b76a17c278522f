"""Where a sweep ends, at the latest: in cells, hours or dollars, over all calls."""

from __future__ import annotations

from dataclasses import dataclass

from longhaul.recipe.sweep import BudgetSection
from longhaul.resilience.sweep_directory import CellRecord, SweepState


@dataclass(frozen=True)
class Spent:
    """What a sweep has used: cells that it has begun to train, those of them that train now, hours, dollars.

    What another sweep has trained, or begun, is no cell of this count.
    """

    trials: int
    running: int
    hours: float
    dollars: float


@dataclass(frozen=True)
class Budget:
    """The section of a sweep, and what it means for one as it stands."""

    section: BudgetSection

    def spent(self, state: SweepState) -> Spent:
        """So far; hours and dollars are the driver's to keep (`SweepState`)."""
        begun = sum(_begun(record) for record in state.cells)
        running = sum(record.standing == "running" for record in state.cells)
        return Spent(begun, running, state.hours, state.dollars)

    def over(self, state: SweepState) -> str | None:
        """Why the sweep ends now, and what runs is paused; None while it goes on.

        The last cells that the budget has room for train to their end; see `allows`.
        """
        spent, section = self.spent(state), self.section
        if section.hours is not None and spent.hours >= section.hours:
            return f"budget.hours {section.hours:g}: {spent.hours:.2f} hours have been spent"
        if section.dollars is not None and spent.dollars >= section.dollars:
            return f"budget.dollars {section.dollars:g}: {spent.dollars:.2f} dollars have been spent"
        if section.trials is None or spent.trials < section.trials:
            return None
        unfinished = any(_begun(record) and record.open for record in state.cells)
        return None if unfinished else f"budget.trials {section.trials}: {spent.trials} cells have been trained"

    def allows(self, state: SweepState, record: CellRecord) -> bool:
        """Whether this cell may begin: one that has begun before costs no further trial."""
        return _begun(record) or self.room(state)

    def room(self, state: SweepState) -> bool:
        """Whether one more cell may begin."""
        return self.section.trials is None or self.spent(state).trials < self.section.trials


def dollars(section: BudgetSection, seconds: float, *, cpus: float, gpus: float) -> float:
    """What `seconds` of a cell cost that takes so many CPU cores and GPUs."""
    return seconds / 3600 * (gpus * section.dollars_per_gpu_hour + cpus * section.dollars_per_cpu_hour)


def _begun(record: CellRecord) -> bool:
    return record.begun or record.seconds > 0
