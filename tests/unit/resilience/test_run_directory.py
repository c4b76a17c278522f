"""The run directory: what is written comes back, and what is damaged is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from longhaul.errors import IntegrityError, UserError
from longhaul.recipe import Recipe, parse
from longhaul.resilience.run_directory import RunDirectory, Summary, changed_recipe

TEXT = "{name: tiny, model: {name: resnet10t}, data: {kind: digits}, training: {epochs: 2}}"


@pytest.fixture
def recipe() -> Recipe:
    return parse(TEXT)


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunDirectory:
    return RunDirectory.create(str(tmp_path), "tiny", recipe)


def test_recipe_round_trip(run: RunDirectory, recipe: Recipe) -> None:
    assert RunDirectory.open(run.uri).recipe() == recipe
    assert run.name == "tiny"


def test_the_same_recipe_opens_the_run_again_and_another_is_refused(run: RunDirectory, recipe: Recipe, tmp_path: Path) -> None:
    assert RunDirectory.create(str(tmp_path), "tiny", recipe).uri == run.uri
    run.storage.write_bytes("checkpoints/step-1/model.safetensors", b"x")
    with pytest.raises(UserError, match=r"exists with another recipe \(seed: 0 -> 5\)"):
        RunDirectory.create(str(tmp_path), "tiny", parse(TEXT, overrides=["seed=5"]))


def test_a_change_is_recorded_and_the_former_recipe_kept(run: RunDirectory, recipe: Recipe, tmp_path: Path) -> None:
    run.storage.write_bytes("checkpoints/step-1/model.safetensors", b"x")
    for number, epochs in enumerate((3, 4), start=1):
        before, after = run.recipe(), changed_recipe(str(tmp_path), "tiny", [f"training.epochs={epochs}"])
        with pytest.raises(UserError, match=rf"training\.epochs: {before.training.epochs} -> {epochs}\.0.*--change FIELD=VALUE"):
            RunDirectory.prepare(str(tmp_path), "tiny", after, ["training.steps"])
        RunDirectory.prepare(str(tmp_path), "tiny", after, ["training.epochs"]).save_recipe(after)
        assert run.recipe() == after
        assert parse(run.storage.read_bytes(f"recipes/{number}.yaml").decode()) == before
    events = [event for event in run.events().to_pylist() if event["kind"] == "changed"]
    assert [event["message"] for event in events] == ["training.epochs: 2.0 -> 3.0", "training.epochs: 3.0 -> 4.0"]
    told = json.loads(events[1]["detail"])
    assert told == {"changes": [{"field": "training.epochs", "before": 3.0, "after": 4.0}], "former": "recipes/2.yaml"}


def test_the_same_recipe_again_is_no_change(run: RunDirectory, recipe: Recipe) -> None:
    run.storage.write_bytes("checkpoints/step-1/model.safetensors", b"x")
    run.save_recipe(recipe)
    assert not run.storage.list("recipes")
    assert run.events().num_rows == 0


def test_a_change_of_a_run_that_is_not_there_is_refused(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(UserError, match="no run is there to change"):
        changed_recipe(str(tmp_path), "other", ["training.epochs=3"])
    with pytest.raises(UserError, match="--set and --change contradict each other"):
        changed_recipe(str(tmp_path), "tiny", ["training.epochs=3"], ["training.epochs=2"])


def test_a_run_without_a_checkpoint_takes_a_corrected_recipe(run: RunDirectory, tmp_path: Path) -> None:
    RunDirectory.create(str(tmp_path), "tiny", parse(TEXT, overrides=["seed=5"]))
    assert run.recipe().seed == 5


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 81])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, recipe: Recipe, name: str) -> None:
    with pytest.raises(UserError, match="not a plain name"):
        RunDirectory.create(str(tmp_path), name, recipe)
    assert list(tmp_path.iterdir()) == []


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is there"):
        RunDirectory.open(str(tmp_path / "nothing"))


def test_all_lists_runs_and_nothing_else(run: RunDirectory, tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("x")
    RunDirectory.create(str(tmp_path), "other", recipe)
    assert [found.name for found in RunDirectory.all(str(tmp_path))] == ["other", "tiny"]
    assert RunDirectory.all(str(tmp_path / "nowhere")) == []


def test_summary_round_trip(run: RunDirectory) -> None:
    assert run.summary() == Summary()
    summary = Summary(
        status="failed",
        workload="classification",
        goal="val/top1",
        segment=3,
        step=7,
        best=0.5,
        results={"test/top1": 0.25},
        error="gone",
    )
    run.write_summary(summary)
    stored = run.summary()
    assert stored.updated_s > 0
    assert stored == summary.model_copy(update={"updated_s": stored.updated_s})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_run_keeps_its_summary_readable(run: RunDirectory, value: float) -> None:
    run.write_summary(Summary(best=value, results={"test/loss": value}))
    json.loads(run.storage.read_bytes("summary.json"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    stored = run.summary()
    assert stored.best == pytest.approx(value, nan_ok=True)
    assert stored.results["test/loss"] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("text", ["", "{", '{"status": "running"', '{"status": "odd"}', '{"later": 1}'])
def test_a_damaged_summary_is_named(run: RunDirectory, text: str) -> None:
    run.storage.write_bytes("summary.json", text.encode())
    with pytest.raises(IntegrityError, match=r"tiny/summary\.json"):
        run.summary()


def test_events_keep_their_detail_in_order(run: RunDirectory) -> None:
    run.add_event("started", "two workers", segment=1, workers=2)
    run.add_event("confusion", "on test", segment=1, step=5, split="test", classes=["a", "b"], matrix=[[1, 0], [0, 2]])
    rows = run.events().to_pylist()
    assert [row["kind"] for row in rows] == ["started", "confusion"]
    assert json.loads(rows[1]["detail"]) == {"split": "test", "classes": ["a", "b"], "matrix": [[1, 0], [0, 2]]}


def test_pictures_have_an_address(run: RunDirectory) -> None:
    address = run.write_picture("curves.png", b"png")
    assert Path(address).read_bytes() == b"png"
