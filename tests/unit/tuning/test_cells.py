"""What makes a cell the cell that it is: every field of a recipe is either part of its key or named as none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cifar10_files import write_cifar10
from drawn_tiles import RECIPE as TILES
from drawn_tiles import draw_tiles

from longhaul.errors import UserError
from longhaul.recipe import parse
from longhaul.recipe.flatten import flat
from longhaul.recipe.load import load_sweep
from longhaul.recipe.sweep import SweepRecipe
from longhaul.tuning.cells.cells import NO_PART_OF_RESULT, Cell, CellMaker, check_fields, other_code
from longhaul.tuning.sizing.cost import CostBook

RESOMAP = Path(__file__).parents[3] / "jobs" / "recipes" / "resomap"
BASE: dict[str, Any] = {
    "workload": {"kind": "classification"},
    "model": {"name": "test_resnet"},
    "data": {"kind": "imagefolder", "resolution": 16, "folds": 2},
    "training": {"epochs": 2, "global_batch": 12, "micro_batch": 4, "early_stopping": {"metric": "val/loss", "direction": "min"}},
}
PHASE = {"name": "one", "set": {"data.resolution": 8}, "gate": {"metric": "val/top1", "at_least": 0.1}}
# A second value for every field of a recipe: alone, or with what else it needs on both sides.
ZERO = {"training.engine": "zero2"}
OTHER: dict[str, Any] = {
    "name": "other", "seed": 1, "phases": [PHASE],
    "workload.label_smoothing": 0.1,
    "model.name": "tiny_cnn", "model.pretrained": True, "model.drop_rate": 0.1, "model.drop_path_rate": 0.1,
    "data.resolution": 24, "data.share": 0.5, "data.excluded": ["train/0/0003.png"], "data.loader_workers": 0,
    "data.folds": 3, "data.fold": 1, "data.augment": "flip", "data.validation_share": 0.3, "data.test_share": 0.3,
    "training.epochs": 3, "training.global_batch": 24, "training.micro_batch": 6, "training.engine": "zero1",
    "training.offload": ("cpu", ZERO), "training.precision": "bf16", "training.clip_norm": 1.0, "training.ema_decay": 0.9,
    "training.optimizer.name": "sgd", "training.optimizer.lr": 0.1, "training.optimizer.weight_decay": 0.1,
    "training.optimizer.momentum": 0.5, "training.optimizer.betas": [0.8, 0.9],
    "training.schedule.name": "exponential", "training.schedule.warmup": ("1 epochs", {"training.schedule.name": "constant"}),
    "training.early_stopping.patience": 7, "training.early_stopping.metric": "val/f1",
    "training.early_stopping.direction": "max", "training.early_stopping.min_delta": 0.3,
    "training.early_stopping.warmup": "1 epochs",
    "validation.every": "2 steps", "validation.batch": 3,
    "checkpoints.every": "2 steps", "checkpoints.keep_latest": 1, "checkpoints.keep_best": 1,
    "checkpoints.keep_every": "1 epochs",
    "checkpoints.ephemeral": "off", "checkpoints.ephemeral_min_s": 1.0, "checkpoints.ephemeral_max_s": 9999.0,
    "scaling.workers": 2, "scaling.gpu": False, "scaling.cpus_per_worker": 2.0,
    "resilience.hang_s": 9.0, "resilience.spike_sigma": 9.0, "resilience.max_rollbacks": 1, "resilience.preflight": False,
    "resilience.poll_s": 9.0, "resilience.budgets.preemption": 1, "resilience.budgets.capacity": 1,
    "resilience.budgets.lost": 1, "resilience.budgets.hang": 1, "resilience.budgets.memory": 1,
    "tracking.trackers": ["tensorboard"], "tracking.project": "other", "tracking.log_every": "3 steps",
    "export.model_name": "other", "export.opset": 20, "export.max_batch": 4, "export.batches": [2], "export.precision": "fp16",
}  # fmt: skip
OTHER_OF_A_DETECTOR: dict[str, Any] = {
    "workload.score": 0.3, "workload.iou": 0.3, "workload.goal": "f1",
    "model.name": "fasterrcnn_resnet34_fpn", "model.norm": "frozen", "model.mean": 0.1, "model.std": 0.1, "model.stages": [3, 4],
    "model.fpn_channels": 8, "model.head_width": 8, "model.anchor_px": 9.0, "model.aspect_ratios": [1.0], "model.candidates": 9,
    "model.proposals": 9, "model.anchor_samples": 9, "model.proposal_samples": 9, "model.least_score": 0.3,
    "model.nms_iou": 0.3, "model.max_detections": 9, "data.classes": ["bluetooth", "wifi"], "data.ignored": ["lte"],
    "data.resolution": 96, "data.augment": "mirror", "data.validation_share": 0.4, "data.test_share": 0.3,
}  # fmt: skip
# Decided on elsewhere: they make another recipe of everything else, or are looked at by their content.
APART = {"workload.kind", "data.kind", "data.root", "model.weights", "training.steps", "training.samples"}
APART_OF_A_DETECTOR = {"training.early_stopping"}  # null there


def is_part(field: str) -> bool:
    return not any(field == none or field.startswith(f"{none}.") for none in NO_PART_OF_RESULT)


def fields_of(cell: Cell) -> set[str]:
    """Every field of its recipe; a duration, which has two, once."""
    return {
        field.removesuffix(".amount").removesuffix(".unit") for field in flat(cell.recipe.model_dump(mode="json"))
    }  # fmt: skip


@pytest.fixture(scope="module")
def makers(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellMaker]:
    """A maker of classifiers and one of detectors, kept for all fields: each looks at its data sets once."""
    images = {**BASE, "data": {**BASE["data"], "root": str(few_digits)}}
    tiles = draw_tiles(tmp_path_factory.mktemp("tiles"))
    detector = parse(TILES, overrides=[f"data.root={tiles}"]).model_dump(mode="json")
    sweeps = {"images": images, "tiles": detector}
    return {kind: CellMaker(SweepRecipe(name="s", recipe=base, grid={"seed": (0,)})) for kind, base in sweeps.items()}


@pytest.mark.parametrize("field", OTHER)
def test_a_field_changes_the_key_unless_it_is_named_as_no_part_of_the_result(makers: dict[str, CellMaker], field: str) -> None:
    other, needs = OTHER[field] if isinstance(OTHER[field], tuple) else (OTHER[field], {})
    base, changed = makers["images"].cell(needs), makers["images"].cell({**needs, field: other})
    assert (changed.content != base.content) == is_part(field)


@pytest.mark.parametrize("field", OTHER_OF_A_DETECTOR)
def test_a_field_of_a_detector_changes_the_key(makers: dict[str, CellMaker], field: str) -> None:
    assert makers["tiles"].cell({field: OTHER_OF_A_DETECTOR[field]}).content != makers["tiles"].cell({}).content


def test_every_field_of_a_recipe_is_decided_on(makers: dict[str, CellMaker]) -> None:
    """A new field comes into OTHER above, and into NO_PART_OF_RESULT or not."""
    classifier, detector = (fields_of(makers[kind].cell({})) for kind in ("images", "tiles"))
    assert classifier - APART - OTHER.keys() == set()
    assert detector - APART - APART_OF_A_DETECTOR - OTHER.keys() - OTHER_OF_A_DETECTOR.keys() == set()
    assert {path for path in NO_PART_OF_RESULT if not any(f"{field}.".startswith(f"{path}.") for field in classifier)} == set()


def test_what_the_network_learns_from_is_always_part_of_the_key() -> None:
    sections = {"seed", "workload", "model", "training", "phases"}
    assert {path for path in NO_PART_OF_RESULT if path.split(".")[0] in sections} == set()
    assert {path for path in NO_PART_OF_RESULT if path.startswith("data")} == {"data.root", "data.loader_workers"}
    assert {"scaling.workers", "validation.every", "checkpoints.every"}.isdisjoint(NO_PART_OF_RESULT)


@pytest.mark.parametrize("schedule", ["step", "multistep", "exponential", "plateau", "onecycle", "cosine"])
def test_each_schedule_is_another_cell_and_so_is_each_of_its_values(makers: dict[str, CellMaker], schedule: str) -> None:
    needed = {"onecycle": {"max_lr": 0.1}, "multistep": {"milestones": ["1 epochs"]}}.get(schedule, {})
    base = {"name": schedule, **needed}
    other = {"step": {"gamma": 0.3}, "multistep": {"milestones": ["2 epochs"]}, "exponential": {"gamma": 0.3},
             "plateau": {"patience": 7}, "onecycle": {"max_lr": 0.2}, "cosine": {"floor": 0.3}}[schedule]  # fmt: skip
    maker = makers["images"]
    cells = [maker.cell({}), maker.cell({"training.schedule": base}), maker.cell({"training.schedule": {**base, **other}})]
    assert len({cell.key for cell in cells}) == 3


def test_data_that_were_moved_are_the_same_and_a_file_more_makes_others(few_digits: Path, tmp_path: Path) -> None:
    def key(root: Path) -> str:
        sweep = SweepRecipe(name="s", recipe={**BASE, "data": {**BASE["data"], "root": str(root)}}, grid={"seed": (0,)})
        return next(CellMaker(sweep).grid()).key

    moved = Path(shutil.copytree(few_digits, tmp_path / "moved"))
    assert key(moved) == key(few_digits)
    for part in ("train", "test"):
        first = next((moved / part / "0").iterdir())
        more = first.with_name(f"more{first.suffix}")
        shutil.copy(first, more)
        assert key(moved) != key(few_digits)
        more.unlink()
    assert key(moved) == key(few_digits)
    longer = next((moved / "val" / "1").iterdir())
    longer.write_bytes(longer.read_bytes() + b" ")
    assert key(moved) != key(few_digits)


def test_a_phase_with_data_of_its_own_is_known_by_them(few_digits: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(few_digits, tmp_path / "own"))

    def key() -> str:
        data = {**BASE["data"], "root": str(few_digits)}
        phases = [{"name": "one", "set": {"data.root": str(own)}}, {"name": "two"}]
        return next(
            CellMaker(SweepRecipe(name="s", recipe={**BASE, "data": data, "phases": phases}, grid={"seed": (0,)})).grid()
        ).key

    before = key()
    first = next((own / "train" / "0").iterdir())
    shutil.copy(first, first.with_name("more.png"))
    assert key() != before
    first.with_name("more.png").unlink()
    own = own.rename(tmp_path / "moved")
    assert key() == before


def test_initial_weights_count_by_their_content(makers: dict[str, CellMaker], tmp_path: Path) -> None:
    def cell(name: str, value: float) -> Cell:
        torch.save({"a": torch.full((3,), value)}, tmp_path / name)
        return makers["images"].cell({"model.weights": str(tmp_path / name)})

    first = cell("a.pt", 1.0)
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    assert makers["images"].cell({"model.weights": str(tmp_path / "b.pt")}).key == first.key
    assert cell("a.pt", 2.0).key != first.key
    assert makers["images"].cell({}).key != first.key


def test_relative_paths_are_seen_from_the_folder_of_the_command(few_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(few_digits)
    sweep = SweepRecipe(name="s", recipe={**BASE, "data": {**BASE["data"], "root": "here"}}, grid={"seed": (0,)})
    assert next(CellMaker(sweep, tmp_path).grid()).recipe.data.root == str(few_digits)
    with pytest.raises(UserError, match=r"data\.root: 'here' is a relative path"):
        next(CellMaker(sweep, tmp_path / "elsewhere").grid())


def digits_sweep(root: Path, **sections: Any) -> SweepRecipe:
    return SweepRecipe(
        name="s", recipe={**BASE, "data": {"kind": "imagefolder", "resolution": 16, "root": str(root)}}, **sections
    )


def test_the_order_of_a_grid_decides_the_order_of_its_cells_and_no_key(few_digits: Path) -> None:
    grid: dict[str, Any] = {"model.name": ("test_resnet", "tiny_cnn"), "data.resolution": (16, 24), "seed": (0, 1)}
    cells = list(CellMaker(digits_sweep(few_digits, grid=grid)).grid())
    turned = {field: tuple(reversed(values)) for field, values in reversed(grid.items())}
    others = list(CellMaker(digits_sweep(few_digits, grid=turned)).grid())
    assert len({cell.key for cell in cells}) == 8
    assert {cell.key for cell in cells} == {cell.key for cell in others}
    assert [list(cell.coordinates.values()) for cell in cells[:3]] == [
        ["test_resnet", 16, 0], ["test_resnet", 16, 1], ["test_resnet", 24, 0],
    ]  # fmt: skip
    assert cells[0].key.startswith("test_resnet-16-")
    assert cells[0].recipe.name == "test_resnet-16"


def test_folds_are_cells_of_their_own_wherever_the_point_comes_from(few_digits: Path) -> None:
    folded = CellMaker(digits_sweep(few_digits, grid={"seed": (0, 1)}, folds=3))
    cells = list(folded.grid())
    assert [cell.coordinates for cell in cells[:4]] == [{"seed": 0, "data.fold": fold} for fold in (0, 1, 2)] + [
        {"seed": 1, "data.fold": 0}
    ]
    assert {cell.recipe.data.folds for cell in cells} == {3}
    assert [cell.key for cell in folded.folded({"seed": 1})] == [cell.key for cell in cells[3:]]
    plain = CellMaker(digits_sweep(few_digits, grid={"seed": (0,)}))
    assert [cell.coordinates for cell in plain.folded({"seed": 0})] == [{"seed": 0}]


def test_the_cores_of_a_trial_are_those_of_the_sweep_and_no_part_of_the_key(few_digits: Path) -> None:
    one = next(CellMaker(digits_sweep(few_digits, grid={"seed": (0,)})).grid())
    two = next(CellMaker(digits_sweep(few_digits, grid={"seed": (0,)}, resources={"cpus": 2, "gpus": 0.5})).grid())
    assert (one.recipe.scaling.cpus_per_worker, two.recipe.scaling.cpus_per_worker) == (1.0, 2.0)
    assert one.key == two.key


def test_a_micro_batch_by_memory_is_the_same_whatever_else_the_grid_has(few_digits: Path) -> None:
    def micro_batches(resolutions: tuple[int, ...], gb: float) -> dict[int, tuple[str, int]]:
        sweep = digits_sweep(
            few_digits,
            grid={"data.resolution": resolutions, "training.global_batch": (64,)},
            resources={"micro_batch": "memory", "gpu_memory_gb": gb},
        )
        return {c.recipe.data.resolution: (c.key, c.recipe.training.micro_batch) for c in CellMaker(sweep).grid()}

    up, down = micro_batches((64, 256, 512), 1.2), micro_batches((512, 256), 1.2)
    assert down == {side: up[side] for side in (512, 256)}
    sizes = [up[side][1] for side in (64, 256, 512)]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 64
    assert micro_batches((512,), 12.0)[512][1] == 64


def test_what_makes_no_recipe_is_told_with_its_place_in_the_sweep(few_digits: Path) -> None:
    sweep = digits_sweep(few_digits, grid={"data.resolution": (16, 3), "training.epoch": (1,)})
    with pytest.raises(UserError) as caught:
        list(CellMaker(sweep).grid())
    assert "sweep s, cell data.resolution=16, training.epoch=1: training.epoch: unknown field; did you mean 'epochs'?" in str(
        caught.value
    )


@pytest.mark.parametrize("field", ["name", "data.loader_workers", "tracking.project", "resilience.budgets.memory"])
def test_a_field_that_changes_no_cell_is_refused(few_digits: Path, field: str) -> None:
    sweep = digits_sweep(few_digits, grid={"seed": (0,), field: ("a", "b")})
    with pytest.raises(UserError, match=f"field {field}: does not change what a cell comes to"):
        check_fields(sweep)


def test_one_sweep_may_go_over_several_data_sets(few_digits: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(few_digits, tmp_path / "other"))
    next((other / "train" / "0").iterdir()).unlink()
    sweep = digits_sweep(few_digits, grid={"data.root": (str(few_digits), str(other))})
    check_fields(sweep)
    assert len({cell.key for cell in CellMaker(sweep).grid()}) == 2


def test_folds_of_the_sweep_and_of_its_grid_are_refused_together(few_digits: Path) -> None:
    for fields in ({"data.fold": (0, 1)}, {"data.folds": (2, 3)}):
        sweep = digits_sweep(few_digits, grid=fields, folds=3)
        with pytest.raises(UserError, match="folds"):
            check_fields(sweep)


def test_cells_that_differ_in_the_code_alone_are_found_by_their_key(few_digits: Path) -> None:
    cell = next(CellMaker(digits_sweep(few_digits, grid={"seed": (0,)})).grid())
    older, content = f"{cell.stem}-0a1b2c", f"{cell.stem[:-1]}x-0a1b2c"
    assert other_code(cell, [cell.key, older, content, f"{cell.stem}"]) == [older]


@pytest.mark.exhaustive
def test_the_resomap_sweeps_have_65_cells_and_91_of_which_65_are_the_same(tmp_path: Path) -> None:
    root, book = write_cifar10(tmp_path), CostBook()
    keys = {}
    for name in ("standard", "extended"):
        sweep = load_sweep(RESOMAP / f"{name}.yaml", [f"recipe.data.root={root}"])
        cells = list(CellMaker(sweep, book=book).grid())
        assert all(cell.recipe.training.global_batch == 64 for cell in cells)
        keys[name] = {cell.key for cell in cells}
    assert (len(keys["standard"]), len(keys["extended"])) == (65, 91)
    assert keys["standard"] < keys["extended"]
