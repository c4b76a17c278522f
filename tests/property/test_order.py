"""The order of samples: the same global sequence for every way of cutting it, each epoch whole, each resume exact."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longhaul.data.loader import BatchPlan
from longhaul.data.order import SampleOrder

SIZES = st.integers(1, 200)
SEEDS = st.integers(0, 2**31 - 1)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(global batch, world size that divides it, largest micro-batch)."""
    world, share = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    return world * share, world, draw(st.integers(1, 16))


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    size = draw(SIZES)
    excluded = draw(st.frozensets(st.integers(0, size - 1), max_size=size - 1))
    return SampleOrder(size, draw(st.text(max_size=8)), draw(SEEDS), draw(st.integers(0, 5)), excluded)


@given(orders(), cuts(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_what_the_ranks_read_is_the_global_sequence(order: SampleOrder, cut: tuple[int, int, int], steps: int) -> None:
    """Laid side by side again, the ranks' micro-batches are `take`, sample by sample."""
    global_batch, world, largest = cut
    cursor = 0
    for _ in range(steps):
        stretch = order.take(cursor, global_batch)
        plans = [BatchPlan.derive(global_batch, largest, rank, world) for rank in range(world)]
        assert {(p.micro_batch, p.accumulation) for p in plans} == {(plans[0].micro_batch, plans[0].accumulation)}
        assert plans[0].micro_batch <= largest
        assert plans[0].micro_batch * plans[0].accumulation * world == global_batch
        strides = np.stack([stretch.indices[plan.rank :: world] for plan in plans])
        np.testing.assert_array_equal(strides.T.ravel(), stretch.indices)
        cursor = stretch.cursor


@given(SIZES, SEEDS, st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_each_epoch_has_each_sample_exactly_once(size: int, seed: int, epoch: int) -> None:
    order = SampleOrder(size, "data", seed)
    taken = order.take(epoch * size, size)
    np.testing.assert_array_equal(np.sort(taken.indices), np.arange(size))
    np.testing.assert_array_equal(taken.positions, np.arange(epoch * size, (epoch + 1) * size))
    assert taken.cursor == (epoch + 1) * size


@given(orders(), st.lists(st.integers(1, 50), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_resume_at_any_cursor_goes_on_as_the_straight_sequence(order: SampleOrder, pieces: list[int]) -> None:
    """A fresh order (another process) at each cursor gives what one `take` of everything gives."""
    straight = order.take(0, sum(pieces))
    cursor, indices, positions = 0, [], []
    for count in pieces:
        fresh = SampleOrder(order.size, order.fingerprint, order.seed, order.phase, order.excluded)
        stretch = fresh.take(cursor, count)
        cursor = stretch.cursor
        indices.append(stretch.indices)
        positions.append(stretch.positions)
    np.testing.assert_array_equal(np.concatenate(indices), straight.indices)
    np.testing.assert_array_equal(np.concatenate(positions), straight.positions)
    assert cursor == straight.cursor


@given(orders(), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_excluded_samples_never_come_and_leave_the_turns_of_all_others(order: SampleOrder, epochs: int) -> None:
    whole = SampleOrder(order.size, order.fingerprint, order.seed, order.phase).take(0, epochs * order.size)
    left = order.take(0, epochs * (order.size - len(order.excluded)))
    stays = ~np.isin(whole.indices, list(order.excluded))
    np.testing.assert_array_equal(left.indices, whole.indices[stays])
    np.testing.assert_array_equal(left.positions, whole.positions[stays])


def test_every_ingredient_changes_the_order() -> None:
    """Seed, fingerprint, phase and epoch each decide; 100 samples agree by chance once in 100!."""
    base = SampleOrder(100, "a", 0)
    others = [
        SampleOrder(100, "a", 1).epoch(0),
        SampleOrder(100, "b", 0).epoch(0),
        SampleOrder(100, "a", 0, 1).epoch(0),
        base.epoch(1),
    ]
    sequences = {tuple(order) for order in [base.epoch(0), *others]}
    assert len(sequences) == 5
    assert tuple(SampleOrder(100, "a", 0).epoch(0)) in sequences


def test_augmentation_seeds_differ_by_position_seed_and_phase_and_fit_a_generator() -> None:
    """Positions, not samples: a sample looks different in each epoch."""
    base, other, phase = SampleOrder(10, "a", 0), SampleOrder(10, "a", 1), SampleOrder(10, "a", 0, 1)
    seeds = [o.sample_seed(p) for o in (base, other, phase) for p in range(1000)]
    assert len(set(seeds)) == 3000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_the_sequence_is_the_one_that_old_checkpoints_count_in() -> None:
    """Pinned: if this changes (another numpy, another formula), every cursor stored so far points at other samples."""
    order = SampleOrder(1149, "fingerprint", 7, 0, frozenset({3, 500}))
    stretch = order.take(1000, 3000)
    digest = hashlib.sha256(stretch.indices.astype("<i8").tobytes() + stretch.positions.astype("<i8").tobytes()).hexdigest()
    assert digest == "0052e0264d79148a6661409976fb5ba4674c752ef7aa8c47308cda5105a06c11"
    assert [order.sample_seed(p) for p in (0, 1, 10**9)] == [8024398100154998305, 2780906133992966755, 5800552817037415308]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample is left: 2 samples, 2 excluded"):
        SampleOrder(2, "a", 0, excluded=frozenset({0, 1}))
    with pytest.raises(ValueError, match="no sample is left"):
        SampleOrder(0, "a", 0)
