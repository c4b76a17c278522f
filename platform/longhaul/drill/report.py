"""What a drill finds: for each fault whether it was survived and what it cost; and what the run came to in the end."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from longhaul.drill.faults import Fault

State = Literal["ahead", "striking", "recovering", "survived", "lost"]


class Outcome(BaseModel):
    """One fault.

    Attributes:
        state: `lost` where the run did not go on by itself.
        at_step: the step that was under way when it struck.
        steps_lost: computed once more because of it.
        seconds_lost: from the strike until the run was further than ever, less what the steps in it usually take.
        note: what was done, and what the run's record says of it.
        recorded: the run's record shows the trace that this kind of fault must leave: that it met what it was meant to meet.
    """

    model_config = ConfigDict(extra="forbid")

    fault: Fault
    state: State = "ahead"
    at_step: int | None = None
    steps_lost: int = 0
    seconds_lost: float = 0.0
    note: str = ""
    recorded: bool = True


class Check(BaseModel):
    """One thing that must hold in the end."""

    model_config = ConfigDict(extra="forbid")

    name: str
    passed: bool
    finding: str


class Report(BaseModel):
    """The whole drill.

    Attributes:
        overrides: what the drill changed about the recipe, and the user after it.
        results: the final metrics of both runs, by name: (disturbed, undisturbed).
        ledger_s: seconds by class of the run's ledger.
        log: the last lines of the disturbed run's driver, where the drill was not passed.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    recipe: str
    seed: int
    overrides: list[str]
    steps: int
    outcomes: list[Outcome]
    checks: list[Check] = []
    results: dict[str, tuple[float, float]] = {}
    ledger_s: dict[str, float] = {}
    goodput: float = 0.0
    wall_s: float = 0.0
    log: list[str] = []
    folder: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all faults were survived and all checks hold."""
        return all(outcome.state == "survived" for outcome in self.outcomes) and all(check.passed for check in self.checks)
