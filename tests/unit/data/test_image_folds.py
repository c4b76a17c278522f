"""Parts of labelled images: every class in every part in its share, each image held out once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longhaul.data.image_folds import Named, hold_out, one_fold
from longhaul.errors import UserError

CLASSES = ("cat", "dog", "eel")


def images(*counts: int) -> list[Named]:
    return [(f"{CLASSES[label]}/{number:03d}.png", label) for label, count in enumerate(counts) for number in range(count)]


@settings(deadline=None)  # the first call imports scikit-learn
@given(counts=st.lists(st.integers(5, 40), min_size=1, max_size=3), folds=st.integers(2, 5), seed=st.integers(0, 2**31 - 1))
def test_each_image_is_held_out_in_one_fold_and_trained_on_in_all_others(counts: list[int], folds: int, seed: int) -> None:
    whole = images(*counts)
    dealt = [one_fold(whole, CLASSES, folds, fold, seed) for fold in range(folds)]
    assert all(sorted(kept + held) == sorted(whole) for kept, held in dealt)
    assert sorted(image for _, held in dealt for image in held) == sorted(whole)
    for _, held in dealt:
        found = Counter(label for _, label in held)
        for label, count in enumerate(counts):
            assert count // folds <= found[label] <= -(-count // folds)


def test_the_deal_follows_names_and_seed_and_not_the_order() -> None:
    whole = images(20, 20)
    first = one_fold(whole, CLASSES, 4, 1, 7)
    assert one_fold(whole[::-1], CLASSES, 4, 1, 7) == first
    assert one_fold(whole, CLASSES, 4, 1, 8) != first


def test_a_class_that_not_every_fold_could_measure_is_named() -> None:
    with pytest.raises(UserError) as caught:
        one_fold(images(9, 3, 20), CLASSES, 4, 0, 0)
    assert str(caught.value) == "data.folds 4: class dog has 3 images outside the test split. Set data.folds to at most 3"
    with pytest.raises(UserError, match=r"class eel has 1 images outside the test split\. Add images of that class"):
        one_fold(images(9, 3, 1), CLASSES, 2, 0, 0)


@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), share=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_a_share_leaves_and_takes_at_least_one_of_each_class(counts: list[int], share: float, seed: int) -> None:
    whole = images(*counts)
    kept, held = hold_out(whole, share, seed)
    assert sorted(kept + held) == sorted(whole)
    found = Counter(label for _, label in held)
    for label, count in enumerate(counts):
        assert found[label] == min(max(round(share * count), 1), count - 1)
