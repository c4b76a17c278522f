"""Agreement of maps against scipy and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_1samp

from longhaul.errors import UserError
from longhaul.insight.explain.consistency import RANKS, agreement, estimate, rank_correlations, to_grid, top_ious, top_region


def _maps(count: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, side, side)).astype(np.float32)


def test_the_grid_holds_block_means_where_the_side_divides() -> None:
    maps = _maps(2, 48, 1)
    np.testing.assert_allclose(to_grid(maps, 16), maps.reshape(2, 16, 3, 16, 3).mean(axis=(2, 4)), rtol=1e-6)


def test_a_pixel_on_a_border_between_cells_counts_in_each_by_its_share() -> None:
    maps = _maps(1, 40, 2)
    fine = maps.repeat(2, axis=1).repeat(2, axis=2)  # 80 = 16 x 5: the same function, now with sides that divide
    np.testing.assert_allclose(to_grid(maps, 16), to_grid(fine, 16), rtol=1e-6)
    np.testing.assert_allclose(to_grid(fine, 16), fine.reshape(1, 16, 5, 16, 5).mean(axis=(2, 4)), rtol=1e-6)


def test_a_map_smaller_than_the_grid_is_refused() -> None:
    with pytest.raises(UserError, match="at least 16 px"):
        to_grid(_maps(1, 8, 1))


def test_rank_correlation_is_scipys_with_ties_too() -> None:
    first, second = _maps(3, 8, 3).reshape(3, -1), _maps(3, 8, 4).reshape(3, -1)
    second[1] = np.maximum(second[1] - 0.6, 0)  # most cells tie at zero, as in Grad-CAM
    found = rank_correlations(first, second)
    for i in range(3):
        for j in range(3):
            assert found[i, j] == pytest.approx(spearmanr(first[i], second[j]).statistic, abs=1e-9)


def test_iou_of_top_regions_is_that_of_counting_cells() -> None:
    first, second = _maps(3, 8, 5).reshape(3, -1), _maps(3, 8, 6).reshape(3, -1)
    for percent in (10, 20):
        count = round(64 * percent / 100)
        found = top_ious(first, second, percent)
        for i in range(3):
            for j in range(3):
                one, two = (set(np.argsort(-cells)[:count].tolist()) for cells in (first[i], second[j]))
                assert found[i, j] == pytest.approx(len(one & two) / len(one | two))


def test_a_top_region_takes_ties_and_never_the_floor_of_the_map() -> None:
    cells = np.array([[0, 0, 0, 0, 0, 0, 0, 0, 0, 5.0], [9, 8, 7, 7, 7, 0, 0, 0, 0, 0]])
    assert top_region(cells, 30)[0].sum() == 1
    assert top_region(cells, 30)[1].tolist() == [True] * 5 + [False] * 5


def test_an_empty_map_agrees_with_none() -> None:
    maps = _maps(3, 16, 7)
    empty = np.zeros_like(maps)
    found = agreement(maps, empty)
    assert found.rank_correlation.mean == 0
    assert {percent: overlap.mean for percent, overlap in found.top_iou.items()} == {10: 0, 20: 0}


def test_equal_maps_agree_fully_and_unrelated_ones_as_chance_does() -> None:
    maps = _maps(40, 16, 8)
    same = agreement(maps, maps * 3 + 1)
    assert same.rank_correlation.mean == pytest.approx(1)
    assert same.top_iou[10].mean == 1
    assert same.rank_correlation.chance == pytest.approx(0, abs=0.02)
    other = agreement(maps, _maps(40, 16, 9))
    assert other.rank_correlation.low is not None
    assert other.rank_correlation.high is not None
    assert other.rank_correlation.low < other.rank_correlation.mean < other.rank_correlation.high
    assert other.rank_correlation.mean == pytest.approx(0, abs=0.05)
    # Two independent regions of share q overlap in q² of the cells: IoU q² / (2 q - q²).
    assert other.top_iou[20].chance == pytest.approx(0.2**2 / (2 * 0.2 - 0.2**2), abs=0.01)


@pytest.mark.parametrize("count", [3, 4, 8])
def test_the_confidence_interval_holds_the_mean_of_few_images_as_often_as_it_says(count: int) -> None:
    draws = np.random.default_rng(10).normal(0.5, 0.1, (1000, count))
    found = [estimate(np.diag(values), RANKS) for values in draws]
    covered = [one.low <= 0.5 <= one.high for one in found if one.low is not None and one.high is not None]
    assert len(covered) == 1000
    assert 0.93 < np.mean(covered) < 0.97


def test_the_confidence_interval_is_scipys_and_ends_where_values_end() -> None:
    values = np.array([0.9, 0.99, 0.7, 0.95])
    found = estimate(np.diag(values), RANKS)
    want = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(want.low), 1.0)
    assert want.high > 1


@pytest.mark.parametrize("count", [1, 2])
def test_of_fewer_than_three_images_there_is_no_confidence(count: int) -> None:
    found = agreement(_maps(count, 16, 1), _maps(count, 16, 2))
    assert {(one.low, one.high) for one in (found.rank_correlation, *found.top_iou.values())} == {(None, None)}


def test_chance_is_the_mean_over_pairs_of_different_images() -> None:
    found = estimate(np.array([[1.0, 0.2], [0.4, 0.8]]), RANKS)
    assert (found.mean, found.chance, found.images) == (0.9, pytest.approx(0.3), (1.0, 0.8))


def test_a_single_image_has_no_chance() -> None:
    assert agreement(_maps(1, 16, 1), _maps(1, 16, 2)).rank_correlation.chance is None
