"""A receiver's noise: coloured, with a known power in every band, made block by block."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin2, freqz, oaconvolve

TAPS = 257
FLAT_BELOW = 1 / 200  # of the sample rate: nearer to 0 Hz the slope stops
ROLL_OFF_FROM = 0.9  # of half the sample rate


@dataclass(frozen=True)
class NoiseColour:
    """The shape of the noise's power density over frequency.

    Args:
        slope_db_per_decade: how the density changes with the distance from the centre; 0 is white.
        roll_off_db: how far it has fallen at the band's edge, over the outer tenth of the band; 0 is none.
        dc_spike_db: power of the constant offset over the whole noise power; None is none.
    """

    slope_db_per_decade: float = -3.0
    roll_off_db: float = 3.0
    dc_spike_db: float | None = -10.0

    def density_db(self, of_half_rate: NDArray[np.float64]) -> NDArray[np.float64]:
        """The wanted density in dB, without a common level, at distances from the centre as shares of half the rate."""
        slope = self.slope_db_per_decade * np.log10(np.maximum(of_half_rate, 2 * FLAT_BELOW))
        outside = np.clip((of_half_rate - ROLL_OFF_FROM) / (1 - ROLL_OFF_FROM), 0, 1)
        return np.asarray(slope - self.roll_off_db * (0.5 - 0.5 * np.cos(np.pi * outside)), np.float64)


class Noise:
    """Coloured complex Gaussian noise as a stream; `power_in` says how much of it lies in a band.

    Args:
        colour: its shape.
        rate_hz: sample rate.
        rms: root of its mean power, without the constant offset.
        rng: where the randomness comes from.
    """

    def __init__(self, colour: NoiseColour, rate_hz: float, rms: float, rng: np.random.Generator) -> None:
        shares = np.linspace(0, 1, 1025)
        taps = firwin2(TAPS, shares, 10 ** (colour.density_db(shares) / 20))
        self._taps = (taps * (rms / math.sqrt(2 * float(np.sum(taps**2))))).astype(np.float32)
        self._rate_hz = rate_hz
        self._rng = rng
        self._before = self._white(TAPS - 1)
        spike = 0.0 if colour.dc_spike_db is None else rms * 10 ** (colour.dc_spike_db / 20)
        self._offset = np.complex64(spike * np.exp(2j * np.pi * rng.random()))
        frequencies, response = freqz(self._taps.astype(np.float64), worN=8192, whole=True, fs=rate_hz)
        order = np.argsort((frequencies + rate_hz / 2) % rate_hz)
        self._frequencies = (frequencies[order] + rate_hz / 2) % rate_hz - rate_hz / 2
        self._density = 2 * np.abs(response[order]) ** 2 / rate_hz

    def power_in(self, low_hz: float, high_hz: float) -> float:
        """The mean power between two frequencies, without the offset; beyond the band the density goes on as at its edge."""
        at = np.linspace(low_hz, high_hz, 257)
        density = np.interp(at, self._frequencies, self._density)
        return float(np.trapezoid(density, at))

    def next(self, count: int) -> NDArray[np.complex64]:
        """The next samples of the stream."""
        white = np.concatenate([self._before, self._white(count)])
        self._before = white[-(TAPS - 1) :]
        return np.asarray(oaconvolve(white, self._taps, mode="valid") + self._offset, np.complex64)

    def _white(self, count: int) -> NDArray[np.complex64]:
        return self._rng.standard_normal(2 * count, dtype=np.float32).view(np.complex64)
