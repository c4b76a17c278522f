"""Lists, details and comparisons of runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from longhaul.errors import IntegrityError, LonghaulError, UserError
from longhaul.insight.runs import compare_runs, describe_run, list_runs, resolve_run, run_row
from longhaul.recipe import parse
from longhaul.resilience.run_directory import RunDirectory

from .conftest import T0, TEXT, MakeRun, write_steps


def test_a_row_says_how_a_run_stands(make_run: MakeRun) -> None:
    row = run_row(make_run("a", steps=15, status="running"), now_s=T0 + 40)
    assert (row.name, row.status, row.workload) == ("a", "running", "classification")
    assert (row.step, row.total_steps, row.epoch) == (15, 20, 1.5)
    assert (row.goal, row.best) == ("val/top1", 0.95)
    assert row.loss == pytest.approx(1 / 15)
    assert row.samples_per_s == 4.0
    assert row.age_s == 40
    assert row.quiet_s == 10


def test_a_goal_without_its_split_is_the_validation_metric(make_run: MakeRun) -> None:
    assert run_row(make_run("a", goal="top1")).goal == "val/top1"


@pytest.mark.parametrize(("after_s", "status"), [(119, "running"), (121, "silent")])
def test_running_without_a_sign_of_life_is_silent(make_run: MakeRun, after_s: float, status: str) -> None:
    assert run_row(make_run("a", status="running"), now_s=T0 + 40 + after_s).status == status


def test_a_fresh_metric_is_a_sign_of_life_too(make_run: MakeRun) -> None:
    run = make_run("a", steps=10, status="running")
    write_steps(run, range(11, 20), start_s=T0 + 500)
    row = run_row(run, now_s=T0 + 550)
    assert row.status == "running"
    assert row.step == 19  # the summary still says 10


def test_steps_of_an_earlier_segment_do_not_count_as_progress(make_run: MakeRun) -> None:
    run = make_run("a", steps=18, status="running", segment=2, step=9)
    assert run_row(run).step == 9


def test_an_old_end_is_not_silence(make_run: MakeRun) -> None:
    assert run_row(make_run("a", status="stopped"), now_s=T0 + 1e7).status == "stopped"


def test_a_run_before_its_first_step_is_pending(root: str) -> None:
    row = run_row(RunDirectory.create(root, "new", parse(TEXT)))
    assert (row.status, row.age_s, row.loss) == ("pending", None, None)


def test_a_damaged_run_does_not_hide_the_others(make_run: MakeRun, root: str) -> None:
    make_run("good")
    damaged = make_run("bad")
    damaged.storage.write_bytes("summary.json", b"{")
    make_run("cut").storage.write_bytes("metrics/part-9.parquet", b"PAR1 and no more")
    rows = {row.name: row for row in list_runs(root)}
    assert {name: row.status for name, row in rows.items()} == {"good": "finished", "bad": "damaged", "cut": "damaged"}
    assert "bad/summary.json" in rows["bad"].problem
    assert "cut/metrics/part-9.parquet" in rows["cut"].problem


def test_the_newest_run_comes_first(make_run: MakeRun, root: str) -> None:
    make_run("old")
    make_run("new", started_s=T0 + 100)
    assert [row.name for row in list_runs(root)] == ["new", "old"]
    assert list_runs(f"{root}/nowhere") == []


def test_resolve_takes_a_name_a_folder_and_a_uri(make_run: MakeRun, root: str) -> None:
    run = make_run("a")
    for given in ("a", f"{root}/a", f"{root}/a/", f"file://{root}/a"):
        assert resolve_run(given, root).uri == run.uri


@pytest.mark.parametrize("given", ["digit", "{root}/digit"])
def test_resolve_names_the_nearest(make_run: MakeRun, root: str, given: str) -> None:
    make_run("digits")
    make_run("other")
    with pytest.raises(UserError, match=r"'digits'\?") as error:
        resolve_run(given.format(root=root), root)
    assert error.value.exit_code == 2


def test_resolve_without_any_run(root: str) -> None:
    with pytest.raises(UserError, match="holds no runs"):
        resolve_run("a", root)


def test_a_detail_has_it_all(make_run: MakeRun) -> None:
    run = make_run("a", results={"test/top1": 0.9})
    run.add_event("started", "two workers", segment=1)
    run.storage.write_bytes("checkpoints/step-00000010/manifest.json", b"{}")
    address = run.write_picture("curves.png", b"")
    seen = describe_run(run)
    assert seen.recipe_sha256 == run.recipe().sha256
    assert seen.latest["val/top1"]["value"] == pytest.approx(0.95)
    assert seen.checkpoints == ["step-00000010"]
    assert seen.pictures == [address]
    assert [event["kind"] for event in seen.events] == ["started"]


def test_a_detail_of_a_damaged_run_names_the_part(make_run: MakeRun) -> None:
    run = make_run("a")
    run.storage.write_bytes("events/part-1.parquet", b"")
    with pytest.raises(IntegrityError, match=r"events/part-1\.parquet"):
        describe_run(run)


def test_compare_shows_the_differing_fields_of_all(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", ("seed=3",)), make_run("c", ("seed=4", "training.optimizer.lr=0.1"))]
    found = compare_runs(runs)
    assert found.names == ["a", "b", "c"]
    assert {row.label: row.values for row in found.recipe} == {"seed": [0, 3, 4], "training.optimizer.lr": [0.001, 0.001, 0.1]}


def test_compare_marks_the_best_in_the_right_direction(make_run: MakeRun) -> None:
    runs = [make_run("a", scale=2.0, results={"test/top1": 0.8}), make_run("b", scale=1.0), make_run("c", scale=1.0)]
    rows = {row.label: row for row in compare_runs(runs).metrics}
    assert rows["val/loss"].best == {1, 2}
    assert rows["val/top1"].best == {1, 2}
    assert rows["best val/top1"].best == {1, 2}
    assert rows["test/top1"].values == [0.8, None, None]
    assert rows["test/top1"].best == frozenset()
    assert rows["train/samples_per_s"].best == frozenset()  # all equal


def test_compare_follows_the_goals_own_direction(make_run: MakeRun) -> None:
    change = {"goal": "val/error_m", "goal_direction": "min"}
    runs = [make_run("a", best=3.0, **change), make_run("b", best=float("nan"), **change), make_run("c", best=4.0, **change)]
    rows = {row.label: row for row in compare_runs(runs).metrics}
    assert rows["best val/error_m"].best == {0}


def test_compare_needs_two(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="two or more"):
        compare_runs([make_run("a")])


class TestCommands:
    """`longhaul runs`, as typed."""

    @staticmethod
    def call(*arguments: str) -> tuple[int, str]:
        from longhaul.cli.runs import app

        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
        if isinstance(result.exception, LonghaulError):
            return result.exception.exit_code, str(result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def test_ls(self, make_run: MakeRun, root: str) -> None:
        assert "no runs in" in self.call("ls", "--storage", root)[1]
        make_run("a")
        make_run("b", status="running")
        code, text = self.call("ls", "--storage", root)
        assert code == 0
        assert "finished" in text
        assert "silent" in text
        assert "top1 0.95" in text

    def test_show(self, make_run: MakeRun, root: str) -> None:
        run = make_run("a", status="failed", error="the disk is full [sda]", results={"test/top1": 0.9})
        run.add_event("failed", "the disk is full [sda]", segment=1, step=20)
        code, text = self.call("show", "a", "--storage", root)
        assert code == 0
        for part in ("failed", "the disk is full [sda]", "test/top1", "0.9", "step 20/20"):
            assert part in text

    def test_watch_ends_with_the_run(self, make_run: MakeRun, root: str) -> None:
        make_run("good")
        make_run("bad", status="failed", error="out of disk")
        code, text = self.call("watch", "good", "--storage", root)
        assert (code, "finished" in text) == (0, True)
        code, text = self.call("watch", "bad", "--storage", root)
        assert (code, "out of disk" in text) == (1, True)

    def test_compare_with_a_picture(self, make_run: MakeRun, root: str, tmp_path: Path) -> None:
        make_run("a")
        make_run("b", ("seed=3",), scale=2.0)
        target = tmp_path / "new" / "curves.png"
        code, text = self.call("compare", "a", "b", "--storage", root, "--picture", str(target))
        assert code == 0
        assert "seed" in text
        assert "0.95 *" in text
        assert target.read_bytes().startswith(b"\x89PNG")

    def test_an_unknown_run_is_the_users_mistake(self, make_run: MakeRun, root: str) -> None:
        make_run("digits")
        for verb in ("show", "watch"):
            code, text = self.call(verb, "digts", "--storage", root)
            assert (code, "'digits'" in text) == (2, True)
