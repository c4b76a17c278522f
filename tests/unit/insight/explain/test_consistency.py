"""Agreement of maps against scipy and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from longhaul.errors import UserError
from longhaul.insight.explain.consistency import agreement, estimate, rank_correlations, to_grid, top_ious, top_region


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


def test_the_confidence_interval_of_a_mean_is_about_that_of_the_normal_law() -> None:
    values = np.random.default_rng(10).normal(0.5, 0.1, 200)
    found = estimate(np.diag(values), seed=0)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.mean - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.mean == pytest.approx(half, rel=0.15)


def test_chance_is_the_mean_over_pairs_of_different_images() -> None:
    found = estimate(np.array([[1.0, 0.2], [0.4, 0.8]]), seed=0)
    assert (found.mean, found.chance, found.images) == (0.9, pytest.approx(0.3), (1.0, 0.8))


def test_a_single_image_has_neither_confidence_nor_chance() -> None:
    found = agreement(_maps(1, 16, 1), _maps(1, 16, 2)).rank_correlation
    assert (found.low, found.high, found.chance) == (None, None, None)
