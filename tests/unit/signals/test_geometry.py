"""Boxes lie where the signal is bright, are clipped at the edges of a tile, and slivers are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import Corners, TileGeometry

PLAIN = TileGeometry(side=100, sample_rate_hz=1000.0, first_sample=0.0, samples_per_pixel=10.0, top_hz=500.0, hz_per_pixel=10.0)


@pytest.mark.parametrize(
    "front_end",
    [
        FrontEnd(nfft=512, hop=256, tile=128),
        FrontEnd(nfft=512, hop=128, tile=100),
        FrontEnd(nfft=256, hop=256, tile=300),
        FrontEnd(nfft=512, hop=256, tile=64, cut=(2, 4)),
    ],
)
def test_a_burst_is_bright_exactly_in_its_box(front_end: FrontEnd) -> None:
    rate, samples = 2e6, 200_000
    rng = np.random.default_rng(1)
    noise = 1e-4 * (rng.normal(size=samples) + 1j * rng.normal(size=samples))
    for start, count, low, high in (
        (40_000, 30_000, 300e3, 500e3),
        (100_000, 60_000, -800e3, -620e3),
        (120_000, 9_000, 0, 100e3),
    ):
        time = np.arange(count) / rate
        # tones a quarter of a bin apart fill the band evenly from edge to edge
        tones = np.arange(low, high, rate / 512 / 4)
        burst = sum(np.exp(2j * np.pi * (tone * time + rng.random())) for tone in tones) / 30
        iq = noise.copy()
        iq[start : start + count] += burst
        tiles = front_end(torch.from_numpy(iq.astype(np.complex64))).view(-1, front_end.tile, front_end.tile)
        for piece, tile in enumerate(tiles):
            geometry = front_end.geometry(samples, rate, piece)
            box = geometry.box(start, count, low, high)
            bright = (tile > 0.7).numpy()
            if box is None:
                assert bright.sum() <= bright.size // 200
                continue
            rows = np.flatnonzero(bright.mean(axis=1) > 0.3 * bright.mean(axis=1).max())
            columns = np.flatnonzero(bright.sum(axis=0) > 0.5 * (box.y_max - box.y_min))
            smear = front_end.nfft / 2 / geometry.samples_per_pixel  # half the window
            lobe = 2 * rate / front_end.nfft / geometry.hz_per_pixel  # half the window's main lobe
            edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (np.abs(edges - box) <= 1 + np.array([smear, lobe, smear, lobe])).all(), (piece, edges, box)


def test_a_frame_lies_at_its_windows_centre() -> None:
    front_end = FrontEnd(nfft=256, hop=256, tile=32)
    iq = torch.zeros(256 * 32, dtype=torch.complex64)
    iq[256 * 10 + 128] = 1.0  # the centre of frame 10
    column = int(front_end(iq)[0].argmax())
    geometry = front_end.geometry(iq.numel(), 1e6)
    assert column == 10
    assert geometry.corners(256 * 10 + 128, 0, 0, 1).x_min == pytest.approx(10.5)


def test_a_bins_own_frequency_is_the_middle_of_its_pixels() -> None:
    front_end, rate = FrontEnd(nfft=256, hop=128, tile=256), 256e3
    geometry = front_end.geometry(2560, rate)
    for cycles in (-128, -100, 0, 1, 127):
        time = torch.arange(2560, dtype=torch.float64)
        iq = torch.exp(2j * torch.pi * cycles / 256 * time).to(torch.complex64)
        row = int(front_end(iq)[:, 5].argmax())
        assert geometry.corners(0, 1, cycles * 1e3, cycles * 1e3).y_min == pytest.approx(row + 0.5)


def test_a_box_over_an_edge_is_clipped() -> None:
    assert PLAIN.box(-200, 500, 400, 600) == Corners(0, 0, 30, 10)
    assert PLAIN.box(900, 500, -600, -400) == Corners(90, 90, 100, 100)


def test_a_box_outside_has_none() -> None:
    for outside in ((-100, 100, 0, 100), (1000, 50, 0, 100), (0, 100, 500, 600)):
        assert PLAIN.box(*outside) is None
        assert not PLAIN.meets(*outside)


def test_slivers_have_no_box() -> None:
    assert PLAIN.box(100, 9, 0, 100) is None  # 0.9 pixels wide
    assert PLAIN.box(100, 9, 0, 100, least_side_px=0.5) is not None
    assert PLAIN.box(-180, 200, 0, 100) == Corners(0, 40, 2, 50)  # a tenth of it
    assert PLAIN.box(-185, 200, 0, 100) is None  # less
    assert PLAIN.box(-185, 200, 0, 100, least_share=0.0) is not None
    assert PLAIN.meets(-185, 200, 0, 100)


def test_what_is_plain_to_see_has_a_box_however_small_a_part_it_is() -> None:
    assert PLAIN.box(-910, 960, 0, 100) == Corners(0, 40, 5, 50)  # a nineteenth of the burst, 5 x 10 pixels
    assert PLAIN.box(-930, 960, 0, 100) is None  # 3 x 10 pixels


def test_a_signal_much_longer_than_the_tile_fills_it() -> None:
    assert PLAIN.box(-50_000, 100_000, -100, 100) == Corners(0, 40, 100, 60)


def test_a_region_is_where_the_box_was() -> None:
    box = PLAIN.box(100, 250, -300, 120)
    assert box is not None
    assert PLAIN.region(box) == pytest.approx((0.1, 0.35, -300, 120))
