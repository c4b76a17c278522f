"""The tables of a drill, and its plain lines where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from longhaul.drill.conductor import Glance
from longhaul.drill.faults import Fault
from longhaul.drill.report import Check, Outcome, Report
from longhaul.drill.view import LiveView, report_table, schedule_table

FAULTS = [Fault(number=1, kind="kill-node", step=5), Fault(number=2, kind="hung-rank", step=20)]


def _printed(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _report(*outcomes: Outcome, passed: bool = True) -> Report:
    checks = [Check(name="final weights", passed=passed, finding="[/x] equal")]
    return Report(recipe="digits", seed=1, overrides=[], steps=40, outcomes=list(outcomes), checks=checks)


def test_the_table_says_what_each_fault_cost_and_what_was_not_survived() -> None:
    survived = Outcome(fault=FAULTS[0], state="survived", at_step=6, steps_lost=3, seconds_lost=17.25, note="[/var/gloo] reset")
    lost = Outcome(fault=FAULTS[1], state="lost", at_step=21)
    text = _printed(report_table(_report(survived, lost)))
    assert [cell.strip() for cell in text.splitlines()[4].strip("│").split("│")] == ["1", "kill-node", "6", "yes", "3", "17.2"]
    assert [cell.strip() for cell in text.splitlines()[5].strip("│").split("│")] == ["2", "hung-rank", "21", "NO", "", ""]
    assert "1  kill-node: [/var/gloo] reset" in text  # brackets of a message are no markup
    assert "[/x] equal" in text


def test_only_a_drill_without_a_loss_and_with_all_checks_passes() -> None:
    survived = [Outcome(fault=fault, state="survived") for fault in FAULTS]
    assert _report(*survived).passed
    assert not _report(*survived, passed=False).passed
    assert not _report(survived[0], Outcome(fault=FAULTS[1])).passed  # never struck


def test_without_a_terminal_each_change_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=120)
    outcomes = [Outcome(fault=fault) for fault in FAULTS]
    with LiveView(console) as view:
        view.show(Glance("disturbed", 1, 40, outcomes))
        view.show(Glance("disturbed", 2, 40, outcomes))
        outcomes[0].state = "striking"
        view.show(Glance("disturbed", 5, 40, outcomes))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split("  ")[-2:] for line in console.file.getvalue().splitlines()]
    assert lines == [["step 1/40", "disturbed"], ["step 5/40", "1 kill-node striking"]]


def test_the_schedule_names_every_fault() -> None:
    text = _printed(schedule_table(FAULTS))
    assert "kill-node" in text
    assert "a rank sleeps for ever" in text
