"""What must hold once both runs are over."""

from __future__ import annotations

import torch
from torch import Tensor

from longhaul.drill.conductor import DISTURBED, TWIN, Conductor
from longhaul.drill.history import History, Start, final_batches, stream_problems
from longhaul.drill.report import Check, Report
from longhaul.errors import IntegrityError
from longhaul.resilience.accounting import account
from longhaul.resilience.checkpoint import load_weights
from longhaul.resilience.ledger import read_ledger
from longhaul.resilience.run_directory import RunDirectory
from longhaul.training.recovery import memory
from longhaul.workloads import build

TOLERANCE = 0.03
"""How far the final metric may be from the undisturbed run's where sums were rounded in another way: three points."""

_ROUNDING = 1e-4


def examine(conductor: Conductor, disturbed: History, twin: History, report: Report) -> None:
    """Put checks, results and ledger into the report."""
    prepared = conductor.prepared
    run, other = conductor.directory(DISTURBED), conductor.directory(TWIN)
    summary, expected = run.summary(), other.summary()
    report.checks.append(_check("finished", summary.status == "finished", f"{summary.status} at step {summary.step}"))
    batch = prepared.recipe.training.global_batch
    for name, history in ((DISTURBED, disturbed), (TWIN, twin)):
        history.read()
        batches = final_batches(history.passes, _starts(conductor.directory(name)), batch)
        problems = stream_problems(batches, prepared.order, prepared.steps, batch)
        text = "; ".join(problems) or f"{prepared.steps} steps, each sample exactly once an epoch"
        report.checks.append(_check(f"sample stream ({name})", not problems, text))
    report.checks.append(_record(conductor))
    changed = first_change(run)
    report.checks.append(compare_losses(run, other, changed))
    report.results = {name: (summary.results[name], value) for name, value in expected.results.items() if name in summary.results}
    report.checks.append(_metric(report, expected.goal.replace("val/", "test/")))
    if changed is None:
        parameters = {name for name, _ in build(prepared.recipe).build_model(initial=False).named_parameters()}
        report.checks.append(compare_weights(run, other, parameters))
    total = account(read_ledger(run))
    report.ledger_s = {name: length / 1e9 for name, length in total.classes.items()}
    report.goodput = total.goodput
    report.checks.append(_ledger(run))


def _check(name: str, passed: bool, finding: str) -> Check:
    return Check(name=name, passed=passed, finding=finding)


def _starts(run: RunDirectory) -> list[Start]:
    kinds = ("started", "resumed", "rollback")
    return [Start(event["time_s"], event["step"]) for event in run.events().to_pylist() if event["kind"] in kinds]


def _record(conductor: Conductor) -> Check:
    """Each fault must have met what it was meant to meet: a damaged checkpoint that nobody tried to load proves nothing."""
    silent = [f"{o.fault.number} {o.fault.kind}" for o in conductor.outcomes if o.state == "survived" and not o.recorded]
    return _check("record", not silent, f"no trace of {', '.join(silent)}" if silent else "every fault has left its trace")


def first_change(run: RunDirectory) -> int | None:
    """The first step with another micro-batch; None where it stayed."""
    events = run.events().to_pylist()
    changes = [event["time_s"] for event in events if event["kind"] == memory.EVENT]
    return min((e["step"] for e in events if changes and e["kind"] == "resumed" and e["time_s"] > changes[0]), default=None)


def compare_losses(run: RunDirectory, other: RunDirectory, changed: int | None) -> Check:
    """Bit for bit: the loss of a step depends on all weights before it."""
    mine, expected = _loss_by_step(run), _loss_by_step(other)
    steps = sorted(step for step in mine.keys() & expected.keys() if changed is None or step <= changed)
    different = [step for step in steps if mine[step] != expected[step]]
    until = "" if changed is None else f" up to step {changed}, where the micro-batch was halved"
    text = f"equal bit for bit in {len(steps)} steps{until}"
    if different:
        text = f"different in {len(different)} of {len(steps)} steps, first in step {different[0]}"
    return _check("losses", bool(steps) and not different, text)


def _loss_by_step(run: RunDirectory) -> dict[int, float]:
    rows = [row for row in run.metrics().to_pylist() if row["name"] == "train/loss"]
    return {row["step"]: row["value"] for row in sorted(rows, key=lambda row: (row["segment"], row["step"]))}


def _metric(report: Report, goal: str) -> Check:
    if goal not in report.results:
        return _check("final metric", False, f"{goal} was not measured")
    mine, expected = report.results[goal]
    text = f"{goal} {mine:.4f}, undisturbed {expected:.4f}, tolerance {TOLERANCE:g}"
    return _check("final metric", abs(mine - expected) <= TOLERANCE * max(1.0, abs(expected)), text)


def compare_weights(run: RunDirectory, other: RunDirectory, parameters: set[str]) -> Check:
    """Parameters bit for bit; buffers (batch norm's statistics) as well, but for the rounding of extra saves.

    Each save makes the ranks' buffers their mean, so a save more (at a notice) rounds them in another way; no parameter
    depends on them.
    """
    try:
        mine, expected = load_weights(run, "latest").state, load_weights(other, "latest").state
    except IntegrityError as error:
        return _check("final weights", False, str(error))
    if mine.keys() != expected.keys():
        return _check("final weights", False, "other names")
    different = [name for name in parameters & mine.keys() if not torch.equal(mine[name], expected[name])]
    distances = {name: _distance(mine[name], expected[name]) for name in mine.keys() - parameters}
    furthest = max(distances.values(), default=0.0)
    if different:
        return _check("final weights", False, f"{len(different)} of {len(parameters)} parameters differ, such as {different[0]}")
    text = f"{len(parameters)} parameters and {len(distances)} buffers equal bit for bit"
    if furthest:
        text = f"{len(parameters)} parameters equal bit for bit, {len(distances)} buffers within {furthest:.1e} of their largest"
    return _check("final weights", furthest < _ROUNDING, text)


def _distance(mine: Tensor, expected: Tensor) -> float:
    if not mine.numel() or torch.equal(mine, expected):
        return 0.0
    scale = max(float(expected.double().abs().max()), 1e-12)
    return float((mine.double() - expected.double()).abs().max()) / scale


def _ledger(run: RunDirectory) -> Check:
    rows = read_ledger(run)
    total, table = account(rows), rows.to_pylist()
    if not table:
        return _check("ledger", False, "it is empty")
    wall_ns = max(row["end_ns"] for row in table) - min(row["start_ns"] for row in table)
    text = f"classes sum to {total.total_ns / 1e9:.3f} s of {wall_ns / 1e9:.3f} s; goodput {total.goodput:.1%}"
    return _check("ledger", abs(total.total_ns - wall_ns) <= 1_000_000, text)
