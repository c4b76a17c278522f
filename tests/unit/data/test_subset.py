"""Parts of a sample set: the same share of every class, and samples that are left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longhaul.data.images import ImageSamples
from longhaul.data.order import SampleOrder
from longhaul.data.preprocess import ImagePreprocess
from longhaul.data.subset import excluded_indices, share_of
from longhaul.errors import UserError


def samples(*counts: int) -> ImageSamples:
    """As many samples of each class, classes interleaved by name."""
    named = sorted((f"{number:04d}-{label}.png", label) for label, count in enumerate(counts) for number in range(count))
    classes = tuple(map(str, range(len(counts))))
    return ImageSamples(Path("/nowhere"), [n for n, _ in named], [x for _, x in named], classes, ImagePreprocess(resolution=8))


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    share=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_class_gives_the_same_share_and_at_least_one(counts: list[int], share: float, seed: int) -> None:
    whole = samples(*counts)
    part = share_of(whole, share, seed)
    found = Counter(part.labels)
    for label, count in enumerate(counts):
        assert found[label] >= 1
        assert share * count - 1e-6 <= found[label] < share * count + 1
    label_of = dict(zip(whole.ids, whole.labels, strict=True))
    assert [label_of[name] for name in part.ids] == list(part.labels)
    assert list(part.ids) == [name for name in whole.ids if name in set(part.ids)]  # in the same order


@given(shares=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)), seed=st.integers(0, 2**31 - 1))
def test_a_smaller_share_lies_within_a_larger_one(shares: tuple[float, float], seed: int) -> None:
    small, large = (set(share_of(samples(30, 7), share, seed).ids) for share in sorted(shares))
    assert small <= large


def test_the_share_is_exact_where_it_can_be() -> None:
    assert len(share_of(samples(100), 0.07, 0)) == 7
    assert len(share_of(samples(100), 0.29, 0)) == 29
    assert len(share_of(samples(3), 1 / 3, 0)) == 1


def test_which_samples_is_decided_by_names_and_seed() -> None:
    whole = samples(50, 50)
    one, again, other = (share_of(whole, 0.3, seed) for seed in (1, 1, 2))
    assert one.ids == again.ids
    assert set(one.ids) != set(other.ids)
    more = share_of(samples(50, 50, 40), 0.3, 1)  # another class beside them changes nothing
    assert set(one.ids) == {name for name in more.ids if not name.endswith("-2.png")}


def test_all_of_it_is_the_set_itself() -> None:
    whole = samples(5)
    assert share_of(whole, 1.0, 0) is whole


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="not above 0 and at most 1"):
        share_of(samples(5), share, 0)


# ---- excluded --------------------------------------------------------------------------------------------------------


def test_excluded_ids_become_indices_in_the_whole_set() -> None:
    whole = samples(4, 4)
    assert excluded_indices(whole, [whole.ids[6], whole.ids[1]]) == [1, 6]
    assert excluded_indices(whole, []) == []


def test_an_unknown_id_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UserError, match=r"data\.excluded '0002_1\.png': no training sample .* mean '0002-1\.png'"):
        excluded_indices(samples(4, 4), ["0002_1.png"])


def test_every_other_sample_keeps_its_turn() -> None:
    """Leaving one out moves nobody else: positions stay, and so does what is random about each."""
    whole = samples(10, 10)
    out = frozenset(excluded_indices(whole, [whole.ids[7]]))
    plain, without = SampleOrder(20, "f", 0), SampleOrder(20, "f", 0, excluded=out)
    before, after = plain.take(0, 40), without.take(0, 38)
    assert after.cursor == before.cursor
    kept = before.indices != 7
    assert (after.indices == before.indices[kept]).all()
    assert (after.positions == before.positions[kept]).all()


def test_an_excluded_id_may_lie_outside_a_part_of_the_set() -> None:
    """A phase on a share of the data has not all the samples that the recipe leaves out."""
    some = samples(3, 3)
    assert excluded_indices(some, ["elsewhere.png", some.ids[2]], part=True) == [2]
    with pytest.raises(UserError, match=r"'elsewhere\.png': no training sample has this id"):
        excluded_indices(some, ["elsewhere.png", some.ids[2]])
