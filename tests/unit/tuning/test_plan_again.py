"""A sweep that is edited, extended or planned from elsewhere: which of its cells stay, leave, or are taken from others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.load import added
from longhaul.recipe.sweep import SweepRecipe
from longhaul.resilience.run_directory import RunDirectory, Summary
from longhaul.resilience.sweep_directory import CellRecord
from longhaul.tuning.cells.cells import CellMaker, check_fields
from longhaul.tuning.cells.code_version import Sources, code_version
from longhaul.tuning.grid.grid_planner import GridCell, GridPlanner, Standing, Start
from longhaul.tuning.sweep_plan import SweepPlan, plan

RATES: dict[str, Any] = {"training.optimizer.lr": (0.00123456, 0.01)}
SPACE: dict[str, Any] = {"training.optimizer.lr": {"log_uniform": [1e-4, 1e-1]}}


class Below:
    """Sweeps over a folder of images, below one storage."""

    def __init__(self, images: Path, storage: Path) -> None:
        self.images, self.storage, self.folder = images, str(storage), Path.cwd()

    def sweep(self, recipe: dict[str, Any] | None = None, **sections: Any) -> SweepRecipe:
        base: dict[str, Any] = {
            "model": {"name": "tiny_cnn"},
            "data": {"kind": "imagefolder", "root": str(self.images), "resolution": 16},
            "training": {"epochs": 3, "global_batch": 10, "micro_batch": 5},
        }
        for path, value in (recipe or {}).items():
            section, name = path.split(".")
            base.setdefault(section, {})[name] = value
        return SweepRecipe.model_validate({"name": "s", "recipe": base, **(sections or {"grid": RATES})})

    def plan(self, sweep: SweepRecipe | None = None, **options: Any) -> SweepPlan:
        return plan(sweep or self.sweep(), self.storage, "s", **{"folder": self.folder, **options})

    def save(self, planned: SweepPlan) -> None:
        planned.directory.save(planned.sweep, planned.state)

    def leave(self, record: CellRecord, status: Any, step: int = 8, *, key: str | None = None) -> None:
        """What training of the cell leaves, to its end or not."""
        run = RunDirectory.create(f"{self.storage}/cells", key or record.key, parse(record.recipe))
        run.write_summary(Summary(status=status, step=step, epoch=2.0, segment=1))

    def drawn(self, sweep: SweepRecipe, *rates: float) -> SweepPlan:
        """A search that has drawn these and finished them."""
        planned = self.plan(sweep)
        for rate in rates:
            for cell in planned.maker.folded({"training.optimizer.lr": rate}):
                self.leave(planned.enlist(cell), "finished")
        self.save(planned)
        return planned


@pytest.fixture
def below(few_digits: Path, tmp_path: Path) -> Below:
    return Below(few_digits, tmp_path)


def other_code_of(key: str) -> str:
    return f"{key.rpartition('-')[0]}-0a1b2c"


@pytest.mark.parametrize("recipe", [{"training.epochs": 2}, {"model.name": "test_resnet"}])
def test_points_of_a_search_whose_recipe_was_edited_leave_it_and_are_told(below: Below, recipe: dict[str, Any]) -> None:
    first = below.drawn(below.sweep(search={"space": SPACE}), 0.01, 0.02)
    again = below.plan(below.sweep(recipe=recipe, search={"space": SPACE}))
    assert again.state.cells == []
    assert again.gone == [record.label for record in first.state.cells]


def test_points_of_a_search_that_make_no_recipe_any_more_leave_it(below: Below) -> None:
    sweep = below.sweep(search={"space": {"training.micro_batch": {"choice": [1, 5, 6]}}})
    planned = below.plan(sweep)
    for size in (5, 6):
        planned.enlist(planned.maker.cell({"training.micro_batch": size}))
    below.save(planned)
    again = below.plan(below.sweep(recipe={"training.global_batch": 5}, search=sweep.search))
    assert again.state.cells == []
    assert again.gone == ["5", "6"]


def test_points_of_a_search_that_is_longer_or_elsewhere_in_its_space_stay(below: Below) -> None:
    first = below.drawn(below.sweep(search={"space": SPACE, "trials": 2}), 0.01, 0.02)
    wider = {"training.optimizer.lr": {"uniform": [0.5, 0.9]}}
    again = below.plan(below.sweep(search={"space": wider, "trials": 9}))
    assert [record.key for record in again.state.cells] == [record.key for record in first.state.cells]
    assert [record.standing for record in again.state.cells] == ["finished", "finished"]
    assert (again.gone, again.new) == ([], [])


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 0), (0, 2)])
def test_points_of_a_search_with_other_folds_leave_it(below: Below, before: int, now: int) -> None:
    first = below.drawn(below.sweep(search={"space": SPACE}, folds=before), 0.01)
    again = below.plan(below.sweep(search={"space": SPACE}, folds=now))
    assert again.state.cells == []
    assert again.gone == [record.label for record in first.state.cells]


@pytest.mark.parametrize("any_code", [False, True])
def test_points_of_other_code_are_trained_again_unless_they_are_taken_as_they_are(below: Below, any_code: bool) -> None:
    planned = below.plan(below.sweep(search={"space": SPACE}))
    record = planned.enlist(planned.maker.cell({"training.optimizer.lr": 0.01}))
    now, older = record.key, other_code_of(record.key)
    record.key = older
    below.leave(record, "finished")
    below.save(planned)
    again = below.plan(below.sweep(search={"space": SPACE}), any_code=any_code)
    assert [(one.key, one.standing) for one in again.state.cells] == [(older, "finished") if any_code else (now, "planned")]
    assert list(again.other_code) == ([] if any_code else [now])
    assert again.gone == []


def test_stopped_and_begun_cells_of_other_code_go_on_when_a_sweep_is_extended(below: Below) -> None:
    asha = below.sweep(grid=RATES, stopping={"kind": "asha"})
    first = below.plan(asha)
    below.save(first)
    stopped, begun = first.state.cells
    now = [record.key for record in first.state.cells]
    for record in (stopped, begun):
        record.key, record.steps = other_code_of(record.key), 8
        below.leave(record, "paused")
    stopped.standing, stopped.reason = "stopped", "stopped early by asha"
    below.save(first)
    more = added(asha, ["training.optimizer.lr=0.1"])
    again = below.plan(more, any_code=True)
    assert [record.key for record in again.state.cells[:2]] == [stopped.key, begun.key]
    assert [record.standing for record in again.state.cells] == ["stopped", "planned", "planned"]
    assert again.state.cells[1].steps == 8
    assert (again.gone, again.other_code) == ([], {})
    assert set(again.cells) == {again.state.cells[2].key}  # beside what is adopted nothing is written
    strict = below.plan(more)
    assert [record.key for record in strict.state.cells[:2]] == now
    assert list(strict.other_code) == now


def test_a_cell_that_this_code_has_begun_is_not_given_up_for_one_that_other_code_has_begun(below: Below) -> None:
    first = below.plan()
    record = first.state.cells[0]
    below.leave(record, "paused", 4)
    below.leave(record, "paused", 8, key=other_code_of(record.key))
    assert below.plan(any_code=True).state.cells[0].key == record.key


def test_a_cell_that_had_not_begun_when_the_code_changed_is_not_gone(below: Below) -> None:
    first = below.plan()
    for record in first.state.cells:
        record.key = other_code_of(record.key)
    below.save(first)
    assert below.plan().gone == []


def test_a_cell_is_forced_by_the_label_that_tables_show_and_by_one_with_brackets(below: Below) -> None:
    planned = below.plan(force=["0.001235"])
    assert [record.forced for record in planned.state.cells] == [True, False]
    below.save(planned)
    with pytest.raises(UserError, match=r"Cells are called '0\.001235', '0\.01'"):
        below.plan(force=["0.0012"])
    betas = below.sweep(grid={"training.optimizer.betas": ([0.9, 0.99], [0.8, 0.99])})
    assert [record.forced for record in below.plan(betas, force=["[0.8, 0.99]"]).state.cells] == [False, True]


def test_a_sweep_with_a_relative_root_means_the_same_from_another_folder(
    below: Below, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "images").symlink_to(below.images)
    (tmp_path / "here" / "others").symlink_to(below.images)
    below.storage = str(tmp_path / "runs")
    relative = below.sweep(recipe={"data.root": "images"})
    first = below.plan(relative, folder=tmp_path / "here")
    below.save(first)
    monkeypatch.chdir(tmp_path)
    saved = first.directory.recipe()
    again = below.plan(added(saved, ["training.optimizer.lr=0.1"]), folder=tmp_path)
    assert [record.key for record in again.state.cells[:2]] == [record.key for record in first.state.cells]
    assert relative.recipe["data"]["root"] == "images"  # what the caller holds stays as it is
    varied = below.plan(below.sweep(grid={"data.root": ("images",), "seed": (0, 1)}), folder=tmp_path / "here")
    assert varied.sweep.grid["data.root"] == (str(below.images),)
    drawn = below.sweep(search={"space": {"data.root": {"choice": ["images", "others"]}}})
    space = below.plan(drawn, folder=tmp_path / "here").sweep.search
    assert space is not None
    assert os.path.isabs(space.space["data.root"].choice[1])  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"--set recipe\.data\.root=/"):
        below.plan(relative, folder=tmp_path)


def test_each_cell_has_its_own_length_and_the_sweep_the_longest(below: Below) -> None:
    planned = below.plan(below.sweep(grid={"training.epochs": (4, 8, 2)}))
    assert [planned.epochs_of(record) for record in planned.state.cells] == [4.0, 8.0, 2.0]
    assert planned.epochs == 8.0


def test_every_way_of_spreading_cells_over_workers_is_known_before_a_search_draws_it(below: Below) -> None:
    grid = below.plan(below.sweep(grid={"scaling.workers": (1, 2), "training.optimizer.lr": (0.1, 0.2)}))
    assert [recipe.scaling.most for recipe in grid.recipes] == [1, 2]
    space = {"scaling.workers": {"choice": [1, 5, 2]}}
    drawn = below.plan(below.sweep(recipe={"training.micro_batch": 1}, search={"space": space}))
    assert {recipe.scaling.most for recipe in drawn.recipes} == {1, 2, 5}


def test_a_cell_that_keeps_no_best_checkpoint_is_another(below: Below) -> None:
    """Its test is of what was saved last."""

    def key(keep: int, **more: Any) -> str:
        recipe = {"checkpoints.keep_best": keep}
        return next(CellMaker(below.sweep(recipe=recipe, **more)).grid()).content

    assert key(1) == key(2) != key(0)
    phases = below.sweep(grid={"phases": ([{"name": "a"}], [{"name": "a", "set": {"checkpoints.keep_best": 0}}])})
    assert len({cell.key for cell in CellMaker(phases).grid()}) == 2
    varied = below.sweep(grid={"checkpoints.keep_best": (0, 2)})
    check_fields(varied)
    assert len({cell.key for cell in CellMaker(varied).grid()}) == 2
    with pytest.raises(UserError, match="are one cell"):
        below.plan(below.sweep(grid={"checkpoints.keep_best": (1, 2)}))


@pytest.mark.parametrize(("gpus", "sample"), [("auto", 1.0), (0, 1.0), (1, 1.0), (0.5, 0.5), (0.25, 0.25)])
def test_a_micro_batch_by_memory_is_for_the_share_of_a_gpu_that_a_cell_has(below: Below, gpus: Any, sample: float) -> None:
    def micro_batch(gb: float, gpus: Any) -> int:
        resources = {"micro_batch": "memory", "gpu_memory_gb": gb, "gpus": gpus}
        recipe = {"data.resolution": 512, "training.global_batch": 512}
        sweep = below.sweep(recipe=recipe, grid={"seed": (0,)}, resources=resources)
        return next(CellMaker(sweep).grid()).recipe.training.micro_batch

    assert micro_batch(24, gpus) == micro_batch(24 * sample, "auto")
    assert micro_batch(24 * 0.25, "auto") < micro_batch(24, "auto") < 512


def test_a_grid_with_one_value_along_which_it_is_pruned_is_trained_whole() -> None:
    from longhaul.recipe.sweep import PruningSection

    cells = [GridCell(name, {"model.name": name, "data.resolution": 32}, cost) for name, cost in (("a", 1.0), ("b", 2.0))]
    planner, standings = GridPlanner(cells, PruningSection(), "max"), dict[str, Standing]()
    for _ in cells:
        answer = planner.next(standings)
        assert isinstance(answer, Start)
        standings[answer.key] = Standing("finished", 0.5)
    assert set(standings) == {"a", "b"}


def test_how_lengths_are_rounded_and_what_decodes_images_are_part_of_the_code(below: Below, tmp_path: Path) -> None:
    import longhaul

    recipe = next(CellMaker(below.sweep()).grid()).recipe
    package = Path(shutil.copytree(Path(longhaul.__file__).parent, tmp_path / "longhaul"))
    before = code_version(recipe, Sources(package))
    assert "pillow" in before.libraries
    assert before.libraries["pillow"] != "none"
    for module, old in (("duration", "math.ceil("), ("phases", "is the name of an earlier phase")):
        file = package / "recipe" / f"{module}.py"
        text = file.read_text()
        file.write_text(text.replace(old, old.replace("ceil", "floor").replace("earlier", "former")))
        assert code_version(recipe, Sources(package)).sha256 != before.sha256
        file.write_text(text)
    schema = package / "recipe" / "schema.py"
    schema.write_text(schema.read_text() + "\nOTHER = 1\n")
    assert code_version(recipe, Sources(package)).sha256 == before.sha256
