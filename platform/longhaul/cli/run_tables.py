"""What `longhaul runs` prints: the list, one run, its ledger, its incidents."""

from __future__ import annotations

from datetime import datetime
from textwrap import shorten
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from longhaul.insight.goodput import IncidentCost
from longhaul.insight.live import STYLES, duration_text, number
from longhaul.insight.runs import RunDetail, RunRow
from longhaul.resilience.accounting import Account

_EVENTS = 12
_WHAT = 60
_WIDE = 110  # columns of a terminal that has room for every column of the list
_BAR = 24
_EIGHTHS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589"


def run_table(rows: list[RunRow], width: int) -> Table:
    """The list of runs, with as many columns as `width` has room for."""
    left = {"run", "status", "best", "workload"}
    names = ["run", "status", "step", "epoch", "best", "loss", "samples/s", "age", "workload"]
    if width < _WIDE:
        names = [name for name in names if name not in ("epoch", "samples/s", "workload")]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold", no_wrap=name != "run")
    for row in rows:
        silent = f"silent {duration_text(row.quiet_s)}" if row.status == "silent" and row.quiet_s else row.status
        cells: dict[str, str | Text] = {
            "run": Text(row.name),
            "status": Text(silent, style=STYLES[row.status]),
            "step": f"{row.step:,}/{row.total_steps:,}" if row.total_steps else "-",
            "epoch": f"{row.epoch:.1f}" if row.step else "-",
            "best": f"{row.goal.removeprefix('val/')} {number(row.best)}" if row.best is not None else "-",
            "loss": number(row.loss),
            "samples/s": number(row.samples_per_s, 3),
            "age": duration_text(row.age_s) if row.age_s is not None else "-",
            "workload": row.workload or "-",
        }
        table.add_row(*(cells[name] for name in names))
    return table


def run_detail(seen: RunDetail) -> Group:
    """One run from all sides."""
    row, summary = seen.row, seen.summary
    facts = Table.grid(padding=(0, 2))
    quiet = f" for {duration_text(row.quiet_s)}: its processes may be gone" if row.status == "silent" and row.quiet_s else ""
    facts.add_row("status", Text(row.status + quiet, style=STYLES[row.status]))
    if summary.error:
        facts.add_row("error", Text(summary.error, style="red"))
    facts.add_row("folder", Text(row.uri))
    facts.add_row("recipe", f"{seen.recipe_sha256[:12]}  ({row.workload or 'not started'})")
    facts.add_row("progress", f"step {row.step:,}/{row.total_steps:,}, epoch {row.epoch:.2f}, segment {summary.segment}")
    if row.age_s is not None:
        facts.add_row("started", f"{duration_text(row.age_s)} ago")
    if row.best is not None:
        facts.add_row("best", Text(f"{row.goal} {number(row.best)} at step {summary.best_step}, {summary.best_checkpoint}"))
    facts.add_row("checkpoints", Text(", ".join(seen.checkpoints) or "none"))
    for number_, picture in enumerate(seen.pictures):
        facts.add_row("" if number_ else "pictures", Text(picture))
    parts: list[Any] = [Text(row.name, style="bold"), facts]
    if seen.latest or summary.results:
        metrics = Table("metric", "value", "step", title="newest metrics", title_justify="left")
        for name, value in sorted(summary.results.items()):
            metrics.add_row(Text(name, style="bold"), number(value), "result")
        for name, latest in sorted(seen.latest.items()):
            if name not in summary.results:
                metrics.add_row(name, number(latest["value"]), f"{latest['step']:,}")
        parts.append(metrics)
    if seen.events:
        events = Table("step", "event", "what", title="last events", title_justify="left")
        for event in seen.events[-_EVENTS:]:
            events.add_row(f"{event['step']:,}", event["kind"], Text(event["message"]))
        parts.append(events)
    return Group(*parts)


def ledger_table(spent: Account, used: tuple[float, float | None] | None) -> Group:
    """Where the time went, class by class; `used` is what `insight.goodput.utilisation` says."""
    table = Table("class", "time", "share", "", title="where the time went", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, ns in spent.classes.items():
        share = ns / spent.total_ns
        table.add_row(
            name, duration_text(ns / 1e9), f"{share:.1%}", Text(_bar(share), style="green" if name == "productive" else "yellow")
        )
    table.add_section()
    table.add_row("all", duration_text(spent.total_ns / 1e9), f"{1:.1%}", "")
    rate = spent.samples_per_s
    speed = f", {number(rate)} samples a productive second" if rate is not None else ""
    if used is not None:
        speed += f", {used[0] / 1e12:.3g} TFLOP/s of the model's own" + (f" (MFU {used[1]:.1%})" if used[1] is not None else "")
    return Group(table, Text(f"goodput {spent.goodput:.2%}{speed}"))


def incident_table(costs: list[IncidentCost]) -> Table:
    """The list of incidents."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("no.", "when", "class", "rank", "what", "step", "steps lost", "time lost"):
        right = name not in ("when", "class", "what")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "what")
    for cost in costs:
        it = cost.incident
        rank = "-" if it.rank is None else str(it.rank)
        when, what = _when(it.time_s)[5:], Text(shorten(it.what, _WHAT, placeholder=" ..."))  # its page has all of it
        table.add_row(str(it.number), when, it.kind, rank, what, f"{it.step:,}", *_price(cost))
    return table


def incident_page(cost: IncidentCost) -> Group:
    """One incident in full."""
    it = cost.incident
    steps, seconds = _price(cost)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("when", f"{_when(it.time_s)}, segment {it.segment}, step {it.step:,}")
    facts.add_row("class", f"{it.kind}, {'the run went on by itself' if it.retried else 'the run ended'}")
    facts.add_row("what", Text(it.what))
    facts.add_row("first to fail", Text(f"rank {it.rank} on {it.host}" if it.rank is not None else "not known"))
    facts.add_row("lost", f"{steps} steps, {seconds}{'' if cost.over else ' until now; its step is not reached again'}")
    parts: list[Any] = [Text(f"incident {it.number}", style="bold"), facts]
    parts += [Text("\nits last log lines", style="bold"), Text("\n".join(it.log) or "none")]
    if it.stacks:
        parts += [Text("\nits stacks", style="bold"), Text(it.stacks)]
    return Group(*parts)


def _price(cost: IncidentCost) -> tuple[str, str]:
    steps = "-" if cost.steps_lost is None else f"{cost.steps_lost:,}"
    return steps, duration_text(cost.seconds_lost)


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")


def _bar(share: float) -> str:
    """A bar of eighths of a character, so that one percent can still be seen."""
    eighths = round(share * _BAR * 8)
    return "\u2588" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
