"""What a cross-validation's report says: the best fold by its goal, means over what there is."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from longhaul.errors import IntegrityError
from longhaul.resilience.fold_report import FILE, Fold, FoldReport, load_report, save_report
from longhaul.storage import Storage


def _report(direction: str = "max") -> FoldReport:
    folds = [
        Fold(number=1, run="x_fold1", status="finished", best=0.7, results={"test/f1": 0.6}),
        Fold(number=2, run="x_fold2", status="finished", best=0.9, results={"test/f1": 0.8}),
        Fold(number=3, run="x_fold3", status="failed", best=0.99, error="lost"),
    ]
    return FoldReport.model_validate({"name": "x", "goal": "val/map50", "direction": direction, "folds": folds})


def test_the_best_fold_is_a_finished_one_by_its_goal() -> None:
    assert _report().best == _report().folds[1]
    assert _report("min").best == _report().folds[0]
    assert FoldReport(name="x", goal="val/f1", direction="max", folds=_report().folds[2:]).best is None


def test_mean_and_deviation_are_over_the_folds_that_have_it() -> None:
    assert _report().spread("test/f1") == pytest.approx((0.7, statistics.stdev([0.6, 0.8])))
    one = FoldReport(name="x", goal="val/f1", direction="max", folds=_report().folds[:1])
    assert one.spread("test/f1") == (0.6, 0.0)


def test_it_reads_back_as_itself_and_damage_is_named(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    assert load_report(storage) is None
    save_report(storage, _report())
    assert load_report(storage) == _report()
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(IntegrityError, match=r"crossval\.json"):
        load_report(storage)
