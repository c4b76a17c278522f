"""How a batch is split over the sizes that there are models for."""

from __future__ import annotations

import pytest

from longhaul.engines.batch_sizes import least_padding, smallest_holding

SIZES = [(1, 4, 8), (1,), (4,), (3, 5), (2, 4, 8, 16)]


@pytest.mark.parametrize(
    ("samples", "sizes", "expected"),
    [
        (6, (1, 4, 8), [4, 1, 1]),
        (8, (1, 4, 8), [8]),
        (13, (8, 1, 4), [8, 4, 1]),
        (17, (1, 4, 8), [8, 8, 1]),
        (2, (4, 8), [4]),
        (6, (4, 8), [4, 4]),
    ],
)
def test_the_largest_size_that_is_filled_comes_first(samples, sizes, expected) -> None:
    assert [piece.size for piece in least_padding(samples, sizes)] == expected


@pytest.mark.parametrize("sizes", SIZES)
def test_every_sample_is_in_one_piece_and_less_than_the_smallest_size_is_padding(sizes) -> None:
    for samples in range(1, 40):
        pieces = least_padding(samples, sizes)
        assert [place for piece in pieces for place in range(piece.start, piece.start + piece.count)] == list(range(samples))
        assert all(1 <= piece.count <= piece.size for piece in pieces)
        assert {piece.size for piece in pieces} <= set(sizes)
        assert sum(piece.size - piece.count for piece in pieces) < min(sizes)


def test_one_call_takes_the_smallest_size_that_holds_the_batch() -> None:
    assert [smallest_holding(samples, (8, 1, 4)) for samples in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    with pytest.raises(ValueError, match="empty"):
        smallest_holding(9, (8, 1, 4))
