"""Cross-validation on a real Ray cluster: a fold that cannot train leaves the others alone, and the same call goes on with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from drawn_tiles import RECIPE, draw_tiles

from longhaul.errors import UserError
from longhaul.insight.folds import draw_folds
from longhaul.insight.runs import resolve_run
from longhaul.recipe import parse
from longhaul.resilience.checkpoint import CheckpointStore
from longhaul.resilience.fold_report import load_report
from longhaul.resilience.lease import lease
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.storage import Storage
from longhaul.tuning.crossval import FoldRun, crossvalidate, prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def test_a_fold_that_cannot_train_leaves_the_others_alone_and_is_taken_up_again(tmp_path: Path) -> None:
    root = draw_tiles(tmp_path / "tiles", recordings=6, chunks=2)
    recipe, storage = parse(RECIPE, overrides=[f"data.root={root}"]), str(tmp_path / "runs")
    folds = prepare(recipe, storage, "both")
    standings: list[list[int]] = []
    with lease(folds[1].run):  # as if another driver trained it
        first_try = crossvalidate(folds, storage, "both", lambda standing: standings.append([s.step for _, s in standing]))
    assert [fold.status for fold in first_try.folds] == ["finished", "failed"]
    assert "is being trained by process" in (first_try.folds[1].error or "")
    assert standings[-1][0] == 3
    with pytest.raises(UserError, match=r"1 of 2 folds have finished.*or name a fold: both_fold1"):
        resolve_run("both", storage)

    segment = RunDirectory.open(f"{storage}/both_fold1").summary().segment
    report = crossvalidate(prepare(recipe, storage, "both"), storage, "both")
    assert [fold.status for fold in report.folds] == ["finished", "finished"]
    assert RunDirectory.open(f"{storage}/both_fold1").summary().segment == segment  # it was not trained again
    assert load_report(Storage.open(f"{storage}/both")) == report
    assert all("test/f1" in fold.results for fold in report.folds)
    assert report.best is not None
    assert report.best.best == max(fold.best or 0 for fold in report.folds)
    assert resolve_run("both", storage).name == report.best.run
    assert [Path(picture).name for picture in draw_folds(storage, report)] == ["folds.png", "pr-curves.png"]

    three = recipe.model_copy(update={"data": recipe.data.model_copy(update={"folds": 3})})
    with pytest.raises(UserError, match="has 2 folds, and this one asks for 3"):
        prepare(three, storage, "both")
    other = parse(RECIPE, overrides=[f"data.root={root}", "seed=9"])
    with pytest.raises(UserError, match=r"exists with another recipe \(seed: 0 -> 9\).*--auto-tune and --set as before"):
        prepare(other, storage, "both")


@pytest.mark.exhaustive
def test_interrupted_folds_save_and_end(tmp_path: Path) -> None:
    root = draw_tiles(tmp_path / "tiles", recordings=6, chunks=2)
    recipe, storage = parse(RECIPE, overrides=[f"data.root={root}", "training.steps=4000"]), str(tmp_path / "runs")
    folds = prepare(recipe, storage, "long")

    def interrupted(standing: Sequence[tuple[FoldRun, Summary]]) -> None:
        if all(summary.step >= 2 for _, summary in standing):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crossvalidate(folds, storage, "long", interrupted)
    for fold in folds:
        summary = fold.run.summary()
        assert summary.status == "paused"
        assert [entry.step for entry in CheckpointStore(fold.run).entries()][-1] == summary.step
    report = load_report(Storage.open(f"{storage}/long"))
    assert report is not None
    assert [fold.status for fold in report.folds] == ["paused", "paused"]
