"""A drill on a terminal: what is going on while it goes, and the table of what came of it."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longhaul.drill.conductor import Glance
from longhaul.drill.faults import MEANING, Fault
from longhaul.drill.report import Outcome, Report, State
from longhaul.insight.live import duration_text

_STYLES: dict[State, str] = {
    "ahead": "dim",
    "striking": "bold yellow",
    "recovering": "yellow",
    "survived": "green",
    "lost": "bold red",
}


class LiveView:
    """Use as a context; `show` takes a glance. Redrawn in place on a terminal, a line at each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown: tuple[str, ...] = ()

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, glance: Glance) -> None:
        """Show how things stand."""
        passed = duration_text(time.monotonic() - self._began_s)
        if self._live is not None:
            self._live.update(_panel(glance, passed), refresh=True)
            return
        now = (glance.phase, *(outcome.state for outcome in glance.outcomes))
        if now == self._shown:
            return
        changed = [o for o, former in zip(glance.outcomes, self._shown[1:], strict=False) if o.state != former]
        for text in [_line(outcome) for outcome in changed] or [glance.phase]:
            self._console.print(f"{passed:>12}  step {glance.step}/{glance.steps}  {text}", highlight=False, markup=False)
        self._shown = now


def schedule_table(faults: list[Fault]) -> Table:
    """What is going to happen."""
    table = Table("", "step", "fault", "what", title="schedule", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for fault in faults:
        table.add_row(str(fault.number), str(fault.step), fault.kind, MEANING[fault.kind])
    return table


def report_table(report: Report) -> RenderableType:
    """What came of it."""
    table = Table("", "fault", "step", "survived", "steps lost", "seconds lost", title="faults", title_justify="left")
    for column in (2, 4, 5):
        table.columns[column].justify = "right"
    for outcome in report.outcomes:
        table.add_row(*_cells(outcome))
    notes = [Text(f"{o.fault.number:>3}  {o.fault.kind}: {_shortened(o.note)}", "dim") for o in report.outcomes if o.note]
    checks = Table("check", "", "finding", title="the run as a whole", title_justify="left")
    for check in report.checks:
        checks.add_row(check.name, Text("yes", "green") if check.passed else Text("NO", "bold red"), Text(check.finding))
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.ledger_s.items() if seconds)
    results = ", ".join(f"{name} {mine:.4f} ({twin:.4f})" for name, (mine, twin) in sorted(report.results.items()))
    ledger, metrics = Text(f"ledger: {spent or 'empty'}"), Text(f"final metrics (undisturbed): {results or 'none'}")
    return Group(table, *notes, Text(), checks, ledger, metrics)


def _shortened(note: str, most: int = 300) -> str:
    """The report has all of it."""
    return note if len(note) <= most else f"{note[: most - 4]} ..."


def _cells(outcome: Outcome) -> tuple[str, str, str, Text, str, str]:
    state, survived = outcome.state, outcome.state == "survived"
    word = {"survived": "yes", "lost": "NO", "ahead": "not struck"}.get(state, state)
    return (
        str(outcome.fault.number),
        outcome.fault.kind,
        str(outcome.at_step or f"({outcome.fault.step})"),
        Text(word, _STYLES[state]),
        str(outcome.steps_lost) if survived else "",
        f"{outcome.seconds_lost:.1f}" if survived else "",
    )


def _panel(glance: Glance, passed: str) -> RenderableType:
    head = Text.assemble((glance.phase, "bold"), f"  step {glance.step}/{glance.steps}  {passed}")
    table = Table("", "fault", "step", "", "steps lost", "seconds lost", box=None, padding=(0, 2, 0, 0))
    for outcome in glance.outcomes:
        number, kind, step, word, *costs = _cells(outcome)
        table.add_row(number, kind, step, word if outcome.state != "ahead" else "", *costs)
    bar = Table.grid()  # a bar alone does not end its line
    bar.add_row(ProgressBar(total=glance.steps or 1, completed=glance.step, width=60))
    return Group(head, bar, table)


def _line(outcome: Outcome) -> str:
    fault = outcome.fault
    cost = f": {outcome.steps_lost} steps, {outcome.seconds_lost:.1f} s" if outcome.state == "survived" else ""
    return f"{fault.number} {fault.kind} {outcome.state}{cost}{f' ({outcome.note})' if outcome.state == 'lost' else ''}"
