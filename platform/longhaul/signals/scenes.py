"""Synthetic scenes: bursts of named standards over coloured noise, with exact annotations, rendered block by block.

A scene is a pure function of its settings and its seed. Its plan (`traffic.plan_traffic`) and its annotations exist before a
sample does; `blocks` then renders it in constant memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin, oaconvolve

from longhaul.signals.annotations import Annotation
from longhaul.signals.noise import Noise
from longhaul.signals.scene_settings import SceneSettings
from longhaul.signals.traffic import Transmission, plan_traffic
from longhaul.signals.waveforms import Chirp, length

BLOCK = 1 << 20  # samples rendered at a time: part of what a seed means, because filters round by block
EDGE_TAPS = 256  # of the filter that cuts a burst off at the band's edge, at the capture's rate
EDGE_CUT = 0.99  # of half the rate: half the amplitude there, so that little is left to fold over the edge
HEADROOM = 4.5  # peak of the strongest burst over its own root mean square, and a little


@dataclass(frozen=True)
class _Placed:
    """A burst of the plan on the capture's sample grid."""

    burst: Transmission
    index: int
    start: int
    count: int


class Scene:
    """One capture.

    Args:
        settings: what it is made of.
        seed: two scenes of the same settings, seed and number are the same bytes.
        number: which of the seed's scenes; any two of them are independent, and so are those of two seeds.

    Attributes:
        samples: length in samples.
        center_hz: the capture's centre.
        transmissions: the plan, in order of time, clutter included.
        annotations: every labelled burst, clipped to the capture and to its band.
    """

    def __init__(self, settings: SceneSettings, seed: int, number: int = 0) -> None:
        rng = np.random.default_rng([seed, number, 0])
        self.settings = settings
        self.seed = seed
        self.number = number
        self.samples = round(settings.duration_s * settings.sample_rate_hz)
        low, high = settings.center_hz
        self.center_hz = low + 0.5e6 * int(rng.integers(0, int((high - low) / 0.5e6) + 1))
        self.transmissions = plan_traffic(settings, self.center_hz, rng)
        rate = settings.sample_rate_hz
        self._placed = [
            _Placed(burst, index, round(burst.start_s * rate), length(burst.emission, rate))
            for index, burst in enumerate(self.transmissions)
        ]
        boxes = [_annotation(placed, rate, self.samples) for placed in self._placed]
        self.annotations = tuple(box for box in boxes if box is not None)

    @property
    def description(self) -> str:
        """What the recording's metadata says about it."""
        low, high = self.settings.snr_db
        others = f", unlabelled clutter of {', '.join(self.settings.clutter_labels)}" if self.settings.clutter else ""
        return (
            f"synthetic {self.settings.kind}, seed {self.seed}, scene {self.number}, SNR {low:g} to {high:g} dB "
            f"(power of a burst over the noise power in its bandwidth), noise sloping "
            f"{self.settings.noise.slope_db_per_decade:g} dB a decade{others}"
        )

    def blocks(self, *, with_noise: bool = True) -> Iterator[NDArray[np.complex64]]:
        """The capture in blocks of `BLOCK` samples, full scale 1; without noise for those who measure the bursts."""
        noise = self.noise()
        waiting = list(reversed(self._placed))
        on_air: list[tuple[_Placed, NDArray[np.complex64]]] = []
        for first in count(0, BLOCK):
            size = min(BLOCK, self.samples - first)
            if size <= 0:
                return
            block = noise.next(size) if with_noise else np.zeros(size, np.complex64)
            while waiting and waiting[-1].start < first + size:
                placed = waiting.pop()
                on_air.append((placed, self._render(placed, noise)))
            for placed, signal in on_air:
                begin, end = max(placed.start, first), min(placed.start + placed.count, first + size)
                block[begin - first : end - first] += signal[begin - placed.start : end - placed.start]
            on_air = [(placed, signal) for placed, signal in on_air if placed.start + placed.count > first + size]
            yield block

    def noise(self) -> Noise:
        """The scene's noise from its beginning; so weak that the strongest burst stays within full scale."""
        rms = 1 / (HEADROOM * 10 ** (self.settings.snr_db[1] / 20))
        return Noise(self.settings.noise, self.settings.sample_rate_hz, rms, np.random.default_rng([self.seed, self.number, 1]))

    def _render(self, placed: _Placed, noise: Noise) -> NDArray[np.complex64]:
        """A burst at its frequency and level, as long as planned."""
        rate, burst = self.settings.sample_rate_hz, placed.burst
        rng = np.random.default_rng([self.seed, self.number, 2, placed.index])
        half = burst.emission.bandwidth_hz / 2
        # what reaches over the band's edge is made at a higher rate and filtered, or it would fold back at the other edge
        factor = math.ceil((abs(burst.offset_hz) + 1.25 * half) / (rate / 2))
        signal = burst.emission.samples(rng, factor * rate)
        turns = burst.offset_hz / (factor * rate) * np.arange(signal.size) + rng.random()
        moved = signal * np.exp(2j * np.pi * turns)
        if factor > 1:
            taps = firwin(EDGE_TAPS * factor + 1, EDGE_CUT / factor)
            moved = oaconvolve(moved, taps, mode="same")[::factor]
        level = math.sqrt(noise.power_in(burst.offset_hz - half, burst.offset_hz + half)) * 10 ** (burst.snr_db / 20)
        exact = np.zeros(placed.count, np.complex64)
        exact[: moved.size] = level * moved[: placed.count]
        return exact


def _annotation(placed: _Placed, rate_hz: float, samples: int) -> Annotation | None:
    """A burst's box, clipped to the capture and to the band; None without a label or where nothing is left."""
    burst = placed.burst
    if burst.label is None:
        return None
    begin, end = max(0, placed.start), min(samples, placed.start + placed.count)
    half = burst.emission.bandwidth_hz / 2
    low, high = burst.offset_hz - half, burst.offset_hz + half
    if isinstance(burst.emission, Chirp):  # outside the band a sweep is silent for a while
        frequency = burst.emission.frequency(rate_hz)[max(0, begin - placed.start) : max(0, end - placed.start)] + burst.offset_hz
        inside = np.flatnonzero(np.abs(frequency) < rate_hz / 2)
        if inside.size == 0:
            return None
        begin, end = begin + int(inside[0]), begin + int(inside[-1]) + 1
        low, high = float(frequency[inside].min()), float(frequency[inside].max())
    low, high = max(low, -rate_hz / 2), min(high, rate_hz / 2)
    if begin >= end or low >= high:
        return None
    return Annotation(label=burst.label, start=begin, count=end - begin, low_hz=low, high_hz=high, emitter=burst.emitter)
