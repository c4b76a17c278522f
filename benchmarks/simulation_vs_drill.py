"""The simulator behind `longhaul plan` against drills: does it expect the goodput that was measured?

    longhaul drill jobs/recipes/classification/digits.yaml --report /tmp/drill.json
    python benchmarks/simulation_vs_drill.py /tmp/drill.json

From each report: how often the workers were restarted, and what a restart took on average (noticing, starting, waiting). The
simulator is given these, a loss rate that leads to as many restarts, and the drill's distance between saves; it has to find
the goodput, and the share of time in which steps were computed twice. A drill's faults come at set steps and not at random, so
this checks the bookkeeping of the model, not its assumptions about when machines fail.

Prediction, written before the first measurement: goodput within 3 percentage points.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from longhaul.cluster.simulation import DAY_S, MONTH_S, Model, simulate
from longhaul.resilience.cadence import Cadence

_BACK = ("resumed at step", "back to step")
_UP = ("productive", "recomputed", "checkpoint", "data", "validation")


def compare(report: dict[str, object], saves_s: float | None) -> str:
    """One line."""
    spent: dict[str, float] = dict(report["ledger_s"])  # type: ignore[call-overload]
    outcomes: list[dict[str, str]] = list(report["outcomes"])  # type: ignore[call-overload]
    restarts = sum("resumed at step" in outcome["note"] for outcome in outcomes)
    wall_s, up_s = sum(spent.values()), sum(spent[name] for name in _UP)
    steps, working_s = int(report["steps"]), spent["productive"] + spent["recomputed"]  # type: ignore[call-overload]
    between_s = saves_s or 4 * working_s / steps  # a drill saves every 4 steps
    stall_s = spent["checkpoint"] / (working_s / between_s)
    model = Model(
        stall_s=stall_s,
        save_s=between_s,
        restart_s=(spent["startup"] + spent["waiting"]) / restarts,
        detect_s=spent["hung"] / restarts,
        hang_s=0.0,
        notice_share=0.0,
        wait_s=0.0,
        interruptions=0.0,
        crashes=restarts / up_s * MONTH_S,
        hangs=0.0,
        validation_share=(spent["validation"] + spent["data"]) / working_s,
        cadence=Cadence(least_s=between_s, most_s=between_s),
    )
    outcome = simulate(model, nodes=1, days=wall_s / DAY_S, runs=400)
    mean, low, high = outcome.range()
    measured = spent["productive"] / wall_s
    twice = spent["recomputed"] / wall_s
    return (
        f"seed {report['seed']}: {restarts} restarts in {wall_s:.0f} s; goodput measured {measured:.1%}, simulated {mean:.1%} "
        f"({low:.1%} to {high:.1%}); recomputed {twice:.1%}, simulated {outcome.share('recomputed'):.1%}"
    )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="*", type=Path, help="reports of `longhaul drill`; without one there is nothing to do")
    parser.add_argument("--saves-s", type=float, help="Seconds from one save to the next; left out, four steps.")
    arguments = parser.parse_args()
    for path in arguments.reports:
        print(compare(json.loads(path.read_text()), arguments.saves_s))


if __name__ == "__main__":
    main()
