"""Dealing recordings into parts: every label in every part in its share, nothing random but by the seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longhaul.data.folds import deal

Groups = dict[str, Counter[str]]

groups = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(["wifi", "bluetooth", "lte"]), st.integers(1, 20)).map(Counter),
    min_size=4,
    max_size=30,
)


@given(groups, st.integers(2, 4), st.integers(0, 9))
def test_every_group_is_dealt_once_and_no_part_is_empty(groups: Groups, parts: int, seed: int) -> None:
    dealt = deal(groups, [1 / parts] * parts, seed)
    assert sorted(name for part in dealt for name in part) == sorted(groups)
    assert all(dealt)
    assert dealt == deal(dict(reversed(groups.items())), [1 / parts] * parts, seed)  # not the order of the dictionary


def test_a_rare_label_is_in_every_part() -> None:
    groups = {f"r{i:02}": Counter({"wifi": 10} | ({"bluetooth": 2} if i % 6 == 0 else {})) for i in range(18)}
    for seed in range(20):
        parts = deal(groups, [1 / 3] * 3, seed)
        assert [len(part) for part in parts] == [6, 6, 6]
        assert [sum(groups[name]["bluetooth"] for name in part) for part in parts] == [2, 2, 2]


def test_shares_are_kept() -> None:
    groups = {f"r{i}": Counter({"wifi": 5, "bluetooth": 5}) for i in range(20)}
    assert [len(part) for part in deal(groups, [0.8, 0.2], 0)] == [16, 4]


def test_the_seed_decides() -> None:
    groups = {f"r{i}": Counter({"wifi": 5}) for i in range(20)}
    assert len({str(deal(groups, [0.5, 0.5], seed)) for seed in range(10)}) > 5


def test_fewer_groups_than_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups cannot be dealt into 3 parts"):
        deal({"a": Counter(), "b": Counter()}, [1 / 3] * 3, 0)
