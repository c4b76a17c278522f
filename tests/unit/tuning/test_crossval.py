"""What a cross-validation decides before it trains: its runs, how many at once, what they will take."""

from __future__ import annotations

from pathlib import Path

import pytest
from drawn_tiles import RECIPE, draw_tiles

from longhaul.errors import UserError
from longhaul.recipe import Recipe, parse
from longhaul.tuning.crossval import parallel_folds, prepare
from longhaul.tuning.estimate import Cost, measure_cost
from longhaul.workloads import build

PICTURES = "{name: d, model: {name: test_resnet}, data: {kind: imagefolder, root: ROOT, resolution: 16}, training: {steps: 1}}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return parse(RECIPE, overrides=[f"data.root={draw_tiles(tmp_path_factory.mktemp('tiles'))}", "data.folds=3"])


def test_each_fold_is_a_run_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    folds = prepare(recipe, str(tmp_path), "signals")
    assert [fold.run.name for fold in folds] == ["signals_fold1", "signals_fold2", "signals_fold3"]
    assert [fold.recipe.data.fold for fold in folds] == [0, 1, 2]
    one = recipe.model_copy(update={"data": recipe.data.model_copy(update={"folds": 0})})
    assert [fold.run.name for fold in prepare(one, str(tmp_path), "plain")] == ["plain_fold1"]


def test_pictures_have_folds_as_tiles_have(few_digits: Path, tmp_path: Path) -> None:
    folds = prepare(parse(PICTURES, overrides=[f"data.root={few_digits}", "data.folds=4"]), str(tmp_path), "d")
    assert [(fold.run.name, fold.recipe.data.fold) for fold in folds] == [(f"d_fold{n + 1}", n) for n in range(4)]
    held = [set(build(fold.recipe).splits.validation.ids) for fold in folds]
    assert len(set.union(*held)) == sum(map(len, held)) == 4 * (10 + 6)  # every training and validation image, once


def test_folds_that_the_pictures_cannot_fill_are_refused_before_anything_starts(few_digits: Path, tmp_path: Path) -> None:
    words = r"data\.folds 17: class 0 has 16 images outside the test split\. Set data\.folds to at most 16"
    with pytest.raises(UserError, match=words):
        prepare(parse(PICTURES, overrides=[f"data.root={few_digits}", "data.folds=17"]), str(tmp_path), "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scaling", "resources", "folds"),
    [
        ("{workers: 1}", {"CPU": 2}, 2),
        ("{workers: 2}", {"CPU": 5}, 2),
        ("{workers: 1, cpus_per_worker: 4}", {"CPU": 2}, 1),
        ("{workers: 1}", {"CPU": 16, "GPU": 4}, 4),
        ("{workers: 2}", {"CPU": 16, "GPU": 4}, 2),
        ("{workers: 1, gpu: false}", {"CPU": 16, "GPU": 4}, 16),
    ],
)
def test_as_many_folds_at_once_as_the_cluster_has_room_for(scaling: str, resources: dict[str, float], folds: int) -> None:
    assert parallel_folds(parse(RECIPE, overrides=[f"scaling={scaling}"]), resources) == folds


def test_folders_made_with_different_settings_are_refused_before_anything_starts(recipe: Recipe, tmp_path: Path) -> None:
    from longhaul.signals.tile_folder import TileSettings, write_settings

    root = draw_tiles(tmp_path / "tiles" / "a")
    draw_tiles(tmp_path / "tiles" / "b", seed=1)
    for name, length in (("a", 0.2), ("b", 0.1)):
        write_settings(tmp_path / "tiles" / name / "20260101_000000", TileSettings(chunk_s=length))
    both = parse(RECIPE, overrides=[f"data.root={root.parent}"])
    with pytest.raises(UserError, match=r"chunk_s is 0\.1 and not 0\.2"):
        prepare(both, str(tmp_path / "runs"), "mixed")


def test_the_estimate_counts_rounds_of_folds() -> None:
    cost = Cost(train_s=0.1, measure_s=0.05, train=100, validation=20, device="CPU")
    assert cost.total_s(10, folds=0, workers=1, parallel=4) == pytest.approx(10 * (10 + 1))
    assert cost.total_s(10, folds=5, workers=1, parallel=2) == pytest.approx(3 * 110)  # two, two, one
    assert cost.total_s(10, folds=4, workers=2, parallel=2) == pytest.approx(2 * 55)


def test_the_cost_is_measured_on_the_recipes_own_data(recipe: Recipe) -> None:
    import torch

    threads = torch.get_num_threads()
    cost = measure_cost(recipe)
    assert cost.train_s > 0
    assert cost.measure_s > 0
    assert cost.train + cost.validation < 24  # the test recordings are not among them
    assert torch.get_num_threads() == threads
