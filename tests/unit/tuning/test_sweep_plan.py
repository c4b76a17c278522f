"""What a sweep finds to do: new cells, those that are done by whomever, those that other code trained, those that are gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cifar10_files import write_cifar10

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.load import load_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.sweep_directory import CellRecord, Standing, SweepDirectory
from longhaul.tuning.board import CELL, sign
from longhaul.tuning.sweep_plan import SweepPlan, plan

RESOMAP = Path(__file__).parents[3] / "jobs" / "recipes" / "resomap"
GRID: dict[str, Any] = {"model.name": ("test_resnet", "tiny_cnn"), "data.resolution": (16, 24)}
SPACE: dict[str, Any] = {"training.optimizer.lr": {"log_uniform": [1e-4, 1e-1]}, "model.name": {"choice": ["tiny_cnn"]}}


class Below:
    """Sweeps over a folder of images, below one storage."""

    def __init__(self, images: Path, storage: Path) -> None:
        self.images, self.storage = images, str(storage)

    def sweep(self, **sections: Any) -> SweepRecipe:
        base = {
            "model": {"name": "tiny_cnn"},
            "data": {"kind": "imagefolder", "root": str(self.images), "resolution": 16},
            "training": {"epochs": 3, "global_batch": 10, "micro_batch": 5},
        }
        return SweepRecipe(name="s", recipe=base, **(sections or {"grid": GRID}))

    def plan(self, sweep: SweepRecipe | None = None, name: str = "s", **options: Any) -> SweepPlan:
        return plan(sweep or self.sweep(), self.storage, name, folder=Path.cwd(), **options)

    def save(self, planned: SweepPlan) -> None:
        planned.directory.save(planned.sweep, planned.state)

    def finish(self, planned: SweepPlan, record: CellRecord, score: float = 0.5, *, as_key: str | None = None) -> RunDirectory:
        """As if the cell had been trained for two epochs, by whomever."""
        run = RunDirectory.create(f"{self.storage}/cells", as_key or record.key, parse(record.recipe))
        if as_key is None:
            sign(planned.directory, planned.cells[record.key])
        with run.metric_writer() as writer:
            for epoch in (1, 2):
                place = {"segment": 1, "step": 4 * epoch, "epoch": float(epoch), "samples": 40 * epoch, "time_s": 1.0}
                writer.append(**place, name="val/top1", value=score - 0.1 + 0.1 * (epoch - 1))
        run.write_summary(
            Summary(status="finished", goal="val/top1", step=8, epoch=2.0, best=score, segment=1, results={"test/top1": score})
        )
        return run


@pytest.fixture
def below(few_digits: Path, tmp_path: Path) -> Below:
    return Below(few_digits, tmp_path)


def standings(planned: SweepPlan) -> list[Standing]:
    return [record.standing for record in planned.state.cells]


def test_a_new_sweep_has_all_its_cells_before_it_and_writes_nothing(below: Below, tmp_path: Path) -> None:
    planned = below.plan()
    assert [record.label for record in planned.state.cells] == ["test_resnet 16", "test_resnet 24", "tiny_cnn 16", "tiny_cnn 24"]
    assert standings(planned) == ["planned"] * 4
    assert planned.new == [record.key for record in planned.state.cells] == list(planned.cells)
    assert (planned.gone, planned.other_code) == ([], {})
    assert (planned.state.goal, planned.state.direction, planned.epochs) == ("val/top1", "max", 3.0)
    costs = [record.cost or 0.0 for record in planned.state.cells]
    assert 0 < costs[0] < costs[1]
    for record in planned.state.cells:
        recipe = parse(record.recipe)
        assert {"model.name": recipe.model.name, "data.resolution": recipe.data.resolution} == record.coordinates
    assert list(tmp_path.iterdir()) == []


def test_an_extended_grid_keeps_what_it_has_and_tells_what_is_new_and_gone(below: Below) -> None:
    first = below.plan()
    below.save(first)
    below.finish(first, first.state.cells[0], 0.7)
    other = below.plan(below.sweep(grid={"model.name": ("test_resnet",), "data.resolution": (32, 16)}))
    assert [record.label for record in other.state.cells] == ["test_resnet 32", "test_resnet 16"]
    assert standings(other) == ["planned", "finished"]
    assert other.new == [other.state.cells[0].key]
    assert other.gone == ["test_resnet 24", "tiny_cnn 16", "tiny_cnn 24"]


def test_what_another_sweep_has_trained_is_found_finished(below: Below) -> None:
    first = below.plan()
    below.finish(first, first.state.cells[1], 0.7)
    turned = below.sweep(grid={"data.resolution": (24, 16), "model.name": ("tiny_cnn", "test_resnet")})
    second = below.plan(turned, "another")
    assert standings(second) == ["planned", "finished", "planned", "planned"]
    record = second.state.cells[1]
    assert record.label == "24 test_resnet"
    assert (record.score, record.steps, record.results) == (0.7, 8, {"test/top1": 0.7})
    assert [epoch for epoch, _ in record.scores] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("standing", "stopping", "expected"),
    [
        ("running", "none", "planned"),  # its driver died
        ("failed", "none", "planned"),
        ("skipped", "none", "planned"),  # pruning decides again
        ("stopped", "none", "planned"),
        ("stopped", "asha", "stopped"),
        ("planned", "asha", "planned"),
    ],
)
def test_what_was_decided_before_is_decided_again_unless_it_stands(
    below: Below, standing: Standing, stopping: str, expected: Standing
) -> None:
    first = below.plan()
    first.state.cells[2].standing, first.state.cells[2].reason = standing, "why"
    first.state.hours, first.state.notes = 1.5, ["a note"]
    below.save(first)
    again = below.plan(below.sweep(grid=GRID, stopping={"kind": stopping}))
    record = again.state.cells[2]
    assert (record.standing, record.reason) == (expected, "why" if expected == standing != "planned" else record.reason)
    assert record.reason is None or expected != "planned" or standing == "planned"
    assert (again.state.hours, again.state.notes) == (1.5, ["a note"])


def test_forced_cells_are_trained_whatever_was_decided(below: Below) -> None:
    first = below.plan()
    for record in first.state.cells:
        record.standing = "stopped"
    below.save(first)
    asha = below.sweep(grid=GRID, stopping={"kind": "asha"})
    assert [record.forced for record in below.plan(asha, force=["tiny_cnn *"]).state.cells] == [False, False, True, True]
    again = below.plan(asha, force=["* 24", first.state.cells[0].key])
    assert standings(again) == ["planned", "planned", "stopped", "planned"]
    below.save(again)
    assert [record.forced for record in below.plan(asha).state.cells] == [True, True, False, True]  # remembered
    with pytest.raises(UserError, match=r"--force 'resnet\*': no cell is called so\. Cells are called 'test_resnet 16', "):
        below.plan(force=["resnet*"])


def test_a_cell_of_other_code_is_told_and_taken_only_when_that_is_asked_for(below: Below) -> None:
    first = below.plan()
    record = first.state.cells[3]
    older = f"{first.cells[record.key].stem}-0a1b2c"
    run = below.finish(first, record, 0.6, as_key=older)
    code = first.cells[record.key].code
    modules = {**code.modules, "longhaul.data.order": "0" * 64}
    told = {"content": first.cells[record.key].content, "modules": modules, "libraries": {**code.libraries, "torch": "2.0.0"}}
    run.storage.write_bytes(CELL, json.dumps(told).encode())

    again = below.plan()
    assert standings(again) == ["planned"] * 4
    assert list(again.other_code) == [record.key]
    assert again.other_code[record.key][0] == "longhaul.data.order"
    assert "torch 2.0.0 -> " in again.other_code[record.key][1]

    adopted = below.plan(any_code=True)
    assert [one.key for one in adopted.state.cells][3] == older
    assert standings(adopted) == ["planned", "planned", "planned", "finished"]
    assert adopted.state.cells[3].score == 0.6
    assert adopted.other_code == {}
    below.save(adopted)
    again = below.plan()  # once is enough
    assert [one.key for one in again.state.cells][3] == older
    assert again.other_code == {}
    adopted.state.cells[3].taken_for = f"{first.cells[record.key].stem}-ffffff"  # for code that has changed since
    below.save(adopted)
    assert list(below.plan().other_code) == [record.key]


def test_a_cell_that_this_code_has_finished_needs_no_other_code(below: Below) -> None:
    first = below.plan()
    record = first.state.cells[3]
    below.finish(first, record, 0.6, as_key=f"{first.cells[record.key].stem}-0a1b2c")
    below.finish(first, record, 0.8)
    for any_code in (False, True):
        again = below.plan(any_code=any_code)
        assert again.state.cells[3].key == record.key
        assert (again.state.cells[3].standing, again.state.cells[3].score) == ("finished", 0.8)
        assert again.other_code == {}


def test_a_finished_cell_whose_run_is_gone_is_planned_again(below: Below) -> None:
    first = below.plan()
    run = below.finish(first, first.state.cells[0])
    second = below.plan()
    assert standings(second)[0] == "finished"
    below.save(second)
    shutil.rmtree(run.storage.root)
    third = below.plan()
    assert standings(third) == ["planned"] * 4
    assert (third.state.cells[0].score, third.state.cells[0].scores, third.state.cells[0].results) == (None, [], {})


def test_two_values_that_make_one_cell_are_refused(below: Below) -> None:
    with pytest.raises(UserError, match=r"'training\.epochs': 3.* and .*'training\.epochs': 3\.0.* are one cell"):
        below.plan(below.sweep(grid={"training.epochs": (3, 3.0)}))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"data.resolution": (16, 3)}, r"cell data\.resolution=3: data\.resolution: input should be greater"),
        ({"model.name": ("tiny_cn",)}, "tiny_cn"),
        ({"training.early_stopping": ({"metric": "val/topp1", "direction": "max"},)}, "val/topp1"),
        ({"data.root": ("/nowhere",)}, "no such folder"),
        ({"scaling.gpu": (True, False)}, r"field scaling\.gpu: does not change"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(below: Below, tmp_path: Path, grid: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        below.plan(below.sweep(grid=grid))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_by_something_else_is_refused(below: Below) -> None:
    with pytest.raises(UserError, match="cells"):
        below.plan(name="cells")
    RunDirectory.create(below.storage, "mine", parse(below.plan().state.cells[0].recipe))
    with pytest.raises(UserError, match=r"mine: is a run"):
        below.plan(name="mine")


def test_a_search_begins_with_no_cells_and_keeps_those_that_it_has_drawn(below: Below) -> None:
    sweep = below.sweep(search={"space": SPACE}, folds=2)
    first = below.plan(sweep)
    assert first.state.cells == []
    drawn = [first.enlist(cell) for cell in first.maker.folded({"training.optimizer.lr": 0.01, "model.name": "tiny_cnn"})]
    assert [record.coordinates["data.fold"] for record in drawn] == [0, 1]
    assert first.enlist(first.cells[drawn[0].key]) is drawn[0]
    below.save(first)
    below.finish(first, drawn[1], 0.9)
    again = below.plan(sweep)
    assert [record.key for record in again.state.cells] == [record.key for record in drawn]
    assert standings(again) == ["planned", "finished"]


def test_a_space_whose_corner_is_no_recipe_is_a_space_all_the_same(below: Below) -> None:
    """A global batch below the micro-batch: a draw that fails is passed over."""
    below.plan(below.sweep(search={"space": {"training.global_batch": {"integer": [2, 64]}}}))


def test_a_part_of_the_resomap_grid_is_planned_on_cifar10(tmp_path: Path) -> None:
    root = write_cifar10(tmp_path / "data")
    small = [f"recipe.data.root={root}", "grid.model.name=[tiny_cnn, resnet18]"]
    standard = plan(load_sweep(RESOMAP / "standard.yaml", small), str(tmp_path / "runs"), "a", folder=Path.cwd())
    extended = plan(load_sweep(RESOMAP / "extended.yaml", small), str(tmp_path / "runs"), "b", folder=Path.cwd())
    keys = [{record.key for record in planned.state.cells} for planned in (standard, extended)]
    assert (len(keys[0]), len(keys[1])) == (10, 14)
    assert keys[0] < keys[1]
    assert {record.gpus for record in extended.state.cells} <= {0.25, 0.5, 1.0}
    assert SweepDirectory.all(str(tmp_path / "runs")) == []
