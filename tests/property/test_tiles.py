"""The front end against a plain float64 reference, and boxes to pixels and back, over rates, lengths, transforms and types."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from longhaul.signals.dynamic_range import ChunkRange
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.geometry import Corners
from longhaul.signals.recording import open_recording, write_recording

BOUND_DB = 1e-2  # within 80 dB of the peak; single precision keeps about 4e-8 of the peak's amplitude
TYPES = ("cf32_le", "cf32_be", "ci16_le", "ci16_be", "ci8", "cu8")


def reference_spectrogram(iq: np.ndarray, nfft: int, hop: int) -> np.ndarray:
    """(frames, nfft), ascending frequency, as a textbook has it."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(nfft) / nfft)
    frames = [iq[first : first + nfft] * window / window.sum() for first in range(0, len(iq) - nfft + 1, hop)]
    return np.abs(np.fft.fftshift(np.fft.fft(frames), axes=1)) ** 2


def reference_average(power: np.ndarray, pixels: int) -> np.ndarray:
    """Means over the extents of the pixels along the first axis, from the integral of the piecewise constant power."""
    cells = len(power)
    integral = np.concatenate([np.zeros((1, power.shape[1])), np.cumsum(power, axis=0)])
    edges = np.linspace(0, cells, pixels + 1)
    at = np.stack([np.interp(edges, np.arange(cells + 1), column) for column in integral.T], axis=1)
    return np.diff(at, axis=0) * pixels / cells


def reference_tile(iq: np.ndarray, front_end: FrontEnd) -> tuple[np.ndarray, np.ndarray]:
    """Level in dB as `FrontEnd.level`, and the tile in 0..1."""
    power = reference_spectrogram(iq, front_end.nfft, front_end.hop)
    pixels = reference_average(reference_average(power, front_end.tile).T, front_end.tile).T
    level = 10 * np.log10(np.maximum(pixels, 1e-20))
    chosen = front_end.dynamic_range
    assert isinstance(chosen, ChunkRange)
    some = np.sort(level.ravel())  # tiles here are small enough that the quantile is over all pixels
    high = level.max()
    low = max(some[max(1, int(np.ceil(chosen.floor_quantile * some.size))) - 1], high - chosen.most_span_db)
    high = max(high, low + chosen.least_span_db)
    return level, np.clip((level - low) / (high - low), 0, 1)[:, ::-1].T


@st.composite
def front_ends(draw: st.DrawFn) -> FrontEnd:
    nfft = 2 ** draw(st.integers(4, 11))
    hop = draw(st.sampled_from([nfft // 4, nfft // 2, nfft])) if draw(st.booleans()) else draw(st.integers(nfft // 8, nfft))
    return FrontEnd(nfft=nfft, hop=max(1, hop), tile=draw(st.sampled_from([16, 32, 50, 64, 100])))


def capture(samples: int, seed: int) -> np.ndarray:
    """Tones of levels from full scale to 70 dB under it, some of them bursts, over noise; within +-1."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)
    iq = 10 ** rng.uniform(-5, -1) * (rng.normal(size=samples) + 1j * rng.normal(size=samples))
    for _ in range(rng.integers(0, 4)):
        begin, end = np.sort(rng.integers(0, samples, 2))
        tone = 10 ** rng.uniform(-3.5, 0) * np.exp(2j * np.pi * (rng.uniform(-0.5, 0.5) * time + rng.random()))
        iq += tone * ((time >= begin) & (time < end))
    return (iq / (1.01 * max(np.abs(iq.real).max(), np.abs(iq.imag).max()))).astype(np.complex64)


@settings(max_examples=60, deadline=None)
@given(front_end=front_ends(), frames=st.integers(1, 80), extra=st.integers(0, 500), seed=st.integers(0, 2**31), data=st.data())
def test_spectrogram_and_tile_equal_a_float64_reference(
    tmp_path_factory: pytest.TempPathFactory, front_end: FrontEnd, frames: int, extra: int, seed: int, data: st.DataObject
) -> None:
    samples = front_end.nfft + (frames - 1) * front_end.hop + extra % front_end.hop
    path = tmp_path_factory.mktemp("rec") / "a"
    rate, datatype = data.draw(st.floats(1e3, 1e9)), data.draw(st.sampled_from(TYPES))
    meta = write_recording(path, capture(samples, seed), sample_rate_hz=rate, datatype=datatype)
    with open_recording(meta) as recording:
        iq = recording.read(0, recording.samples)
    exact = iq.astype(np.complex128)

    power = front_end.spectrogram(torch.from_numpy(iq)).numpy().astype(np.float64)
    expected = reference_spectrogram(exact, front_end.nfft, front_end.hop)
    assert power.shape == expected.shape == (frames, front_end.nfft)
    near = expected > expected.max() * 1e-8
    assert np.abs(10 * np.log10(power[near] / expected[near])).max() <= BOUND_DB

    level, grey = reference_tile(exact, front_end)
    mine = front_end.level(torch.from_numpy(iq)).numpy()
    near = level > 10 * np.log10(expected.max()) - 80
    assert np.abs(mine - level)[near].max() <= BOUND_DB
    pixels = front_end.to_uint8(torch.from_numpy(iq)).numpy().astype(int)
    assert np.abs(pixels - np.floor(grey * 255 + 0.5)).max() <= 1


@given(
    front_end=front_ends(),
    cut=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rate=st.floats(1e3, 1e9),
    frames=st.integers(1, 5000),
    edges=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    data=st.data(),
)
def test_boxes_go_to_pixels_and_back_within_one_bin(
    front_end: FrontEnd, cut: tuple[int, int], rate: float, frames: int, edges: list[float], data: st.DataObject
) -> None:
    front_end = front_end.model_copy(update={"cut": cut})
    samples = front_end.nfft + (frames - 1) * front_end.hop
    geometry = front_end.geometry(samples, rate, data.draw(st.integers(0, front_end.pieces - 1)))
    covered = geometry.region(Corners(0, 0, geometry.side, geometry.side))
    left, right = np.interp(sorted(edges[:2]), [0, 1], [covered.start_s, covered.end_s])
    low, high = np.interp(sorted(edges[2:]), [0, 1], [covered.low_hz, covered.high_hz])
    whole = geometry.corners(left * rate, (right - left) * rate, low, high)
    assert whole.x_min >= -1e-6
    assert whole.x_max <= geometry.side + 1e-6
    pixels = Corners(*(round(edge, 3) for edge in whole))  # as the files hold them
    back = geometry.region(pixels)
    assert back.start_s == pytest.approx(left, abs=1e-3 * geometry.samples_per_pixel / rate)
    assert back.end_s == pytest.approx(right, abs=1e-3 * geometry.samples_per_pixel / rate)
    assert abs(back.low_hz - low) <= rate / front_end.nfft
    assert abs(back.high_hz - high) <= rate / front_end.nfft
    again = geometry.corners(back.start_s * rate, (back.end_s - back.start_s) * rate, back.low_hz, back.high_hz)
    assert again == pytest.approx(pixels, abs=1e-3)
