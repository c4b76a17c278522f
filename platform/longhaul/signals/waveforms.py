"""One burst of each synthetic emitter as complex baseband, centred on 0 Hz, with the standard's own timing and bandwidth.

Every emission is a frozen description (how many symbols, slots or resource blocks); `samples(rng, rate)` renders it as a pure
function of the generator and the rate, with a mean power of one. Random payloads stand for real ones: what a detector sees is
bandwidth, timing and envelope, and those are the standard's.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

Samples = NDArray[np.complex64]
Baseband = NDArray[np.complex128]

WIFI_SPACING_HZ = 312_500.0
WIFI_RATE_HZ = 20_000_000.0
WIFI_SYMBOL_S = 4e-6
WIFI_PREAMBLE_S = 20e-6  # short training 8 us, long training 8 us, SIGNAL 4 us

BLUETOOTH_SYMBOL_HZ = 1_000_000.0
BLUETOOTH_SLOT_S = 625e-6
BLUETOOTH_PACKET_BITS = {1: 366, 3: 1622, 5: 2870}  # DH1, DH3 and DH5 with a full payload, at one bit a microsecond

LTE_SPACING_HZ = 15_000.0
LTE_BLOCK_HZ = 180_000.0
LTE_SLOT_S = 0.5e-3

# IEEE 802.11-2020, 17.3.3: the training sequences on subcarriers -26..26.
_SHORT_TRAINING = np.zeros(53, np.complex128)
_SHORT_TRAINING[[2, 10, 22, 38, 42, 46, 50]] = 1 + 1j
_SHORT_TRAINING[[6, 14, 18, 30, 34]] = -1 - 1j
_LONG_TRAINING = np.array(
    [{"+": 1, "-": -1, "0": 0}[sign] for sign in "++--++-+-++++++--++-+-++++0+--++-+-+-----++--+-+-++++"], np.complex128
)
_PILOTS = np.array([-21, -7, 7, 21]) + 26


class Emission(Protocol):
    """A burst that can be rendered: how long it is and what it occupies around its own centre."""

    @property
    def duration_s(self) -> float: ...

    @property
    def bandwidth_hz(self) -> float: ...

    def samples(self, rng: np.random.Generator, rate_hz: float) -> Samples:
        """The burst, `length(self, rate_hz)` samples of mean power one, centred on 0 Hz."""
        ...


def length(emission: Emission, rate_hz: float) -> int:
    """How many samples an emission takes at a rate: what `samples` returns, exactly."""
    return round(emission.duration_s * rate_hz)


@dataclass(frozen=True)
class WifiPacket:
    """An 802.11a/g packet in a 20 MHz channel: 64 subcarriers, 52 used, symbols of 4 us (IEEE 802.11-2020, clause 17).

    Args:
        symbols: data symbols after preamble and SIGNAL.
        order: points of the constellation of the data, 4 (QPSK) or 16 (16-QAM).
    """

    symbols: int
    order: Literal[4, 16] = 4

    @property
    def duration_s(self) -> float:
        """Preamble, SIGNAL and data."""
        return WIFI_PREAMBLE_S + self.symbols * WIFI_SYMBOL_S

    @property
    def bandwidth_hz(self) -> float:
        """Subcarriers -26..26, each as wide as their spacing: 16.56 MHz."""
        return 53 * WIFI_SPACING_HZ

    def samples(self, rng: np.random.Generator, rate_hz: float) -> Samples:
        """The packet, of mean power one, centred on 0 Hz."""
        short = np.tile(_ofdm_bodies(_SHORT_TRAINING[None] * math.sqrt(13 / 6), 64)[0], 3)[:160]
        long = _ofdm_bodies(_LONG_TRAINING[None], 64)[0]
        carriers = np.zeros((self.symbols + 1, 53), np.complex128)
        carriers[0] = rng.choice([-1.0, 1.0], 53)  # SIGNAL is BPSK
        carriers[1:] = _constellation(rng, (self.symbols, 53), self.order)
        carriers[:, _PILOTS] = rng.choice([-1.0, 1.0], (self.symbols + 1, 1)) * np.array([1, 1, 1, -1])
        carriers[:, 26] = 0
        bodies = _ofdm_bodies(carriers, 64)
        data = np.concatenate([bodies[:, -16:], bodies], axis=1).ravel()
        packet = np.concatenate([short, long[-32:], long, long, data])
        return _finish(_resampled(packet, WIFI_RATE_HZ, rate_hz, length(self, rate_hz)), rate_hz, ramp_s=0.1e-6)


@dataclass(frozen=True)
class BluetoothPacket:
    """A basic-rate Bluetooth packet: GFSK at 1 Msym/s, BT 0.5 (Bluetooth Core 5.4, volume 2, part A, 3.1).

    Args:
        slots: slots of 625 us that it takes, 1, 3 or 5; it is on the air for 366, 1622 or 2870 us of them.
        modulation_index: 0.28 to 0.35.
    """

    slots: Literal[1, 3, 5] = 1
    modulation_index: float = 0.32

    @property
    def duration_s(self) -> float:
        """Time on the air."""
        return BLUETOOTH_PACKET_BITS[self.slots] / BLUETOOTH_SYMBOL_HZ

    @property
    def bandwidth_hz(self) -> float:
        """The channel: 1 MHz, which the standard asks the -20 dB bandwidth to stay within."""
        return 1_000_000.0

    def samples(self, rng: np.random.Generator, rate_hz: float) -> Samples:
        """The packet, of mean power one, centred on 0 Hz."""
        fine = 16  # points a symbol on which the phase is formed; it is smooth between them
        bits = rng.choice([-1.0, 1.0], BLUETOOTH_PACKET_BITS[self.slots] + 4)
        sigma = math.sqrt(math.log(2)) / (2 * math.pi * 0.5) * fine  # of the Gaussian filter, in points, for BT = 0.5
        reach = np.arange(-2 * fine, 2 * fine + 1)
        gaussian = np.exp(-0.5 * (reach / sigma) ** 2)
        frequency = np.convolve(np.repeat(bits, fine), gaussian / gaussian.sum(), mode="same")
        phase = np.concatenate([[0.0], np.cumsum(frequency)]) * math.pi * self.modulation_index / fine
        moments = (np.arange(length(self, rate_hz)) * (BLUETOOTH_SYMBOL_HZ / rate_hz) + 2) * fine
        signal = np.exp(1j * np.interp(moments, np.arange(phase.size), phase))
        return _finish(signal, rate_hz, ramp_s=2e-6)


@dataclass(frozen=True)
class LteUplinkBurst:
    """Consecutive slots of an LTE uplink allocation: SC-FDMA, 15 kHz subcarriers, normal cyclic prefix (3GPP TS 36.211, 5).

    Args:
        blocks: resource blocks of 180 kHz; only 2, 3 and 5 as prime factors, as the standard asks (`allocation_sizes`).
        slots: slots of 0.5 ms; two are a subframe.
        order: points of the constellation, 4 (QPSK) or 16 (16-QAM).
    """

    blocks: int
    slots: int = 2
    order: Literal[4, 16] = 4

    @property
    def duration_s(self) -> float:
        """All slots, without a gap."""
        return self.slots * LTE_SLOT_S

    @property
    def bandwidth_hz(self) -> float:
        """The allocation."""
        return self.blocks * LTE_BLOCK_HZ

    def samples(self, rng: np.random.Generator, rate_hz: float) -> Samples:
        """The burst, of mean power one, centred on 0 Hz."""
        used = 12 * self.blocks
        size = max(128, 1 << math.ceil(math.log2(used * 1.25)))  # 128 and up: prefixes are whole samples
        points = _constellation(rng, (self.slots * 7, used), self.order)
        carriers = np.fft.fft(points, axis=1) / math.sqrt(used)
        carriers[3::7] = _zadoff_chu(used)  # the reference symbol in the middle of each slot
        grid = np.zeros((self.slots * 7, size), np.complex128)
        grid[:, (np.arange(used) - used // 2) % size] = carriers
        bodies = np.fft.ifft(grid, axis=1)
        prefixes = [(160 if symbol == 0 else 144) * size // 2048 for symbol in range(7)] * self.slots
        burst = np.concatenate([part for body, prefix in zip(bodies, prefixes, strict=True) for part in (body[-prefix:], body)])
        burst = burst * np.exp(1j * np.pi * np.arange(burst.size) / size)  # half a subcarrier up: symmetric around 0 Hz
        own_rate_hz = size * LTE_SPACING_HZ
        return _finish(_resampled(burst, own_rate_hz, rate_hz, length(self, rate_hz)), rate_hz, ramp_s=2e-6)


@dataclass(frozen=True)
class Chirp:
    """A linear frequency sweep of constant envelope.

    Args:
        duration_s: time on the air.
        sweep_hz_per_s: how fast the frequency moves, without sign.
        shape: "up", "down" or "triangle" (up, then down, each half the time).
    """

    duration_s: float
    sweep_hz_per_s: float
    shape: Literal["up", "down", "triangle"] = "up"

    @property
    def bandwidth_hz(self) -> float:
        """From the lowest to the highest momentary frequency."""
        return self.sweep_hz_per_s * self.duration_s * (0.5 if self.shape == "triangle" else 1.0)

    def frequency(self, rate_hz: float) -> NDArray[np.float64]:
        """The momentary frequency of every sample, in Hz around the sweep's centre."""
        moments = np.arange(length(self, rate_hz)) / rate_hz
        rising = moments if self.shape != "triangle" else np.minimum(moments, self.duration_s - moments)
        frequency = rising * self.sweep_hz_per_s - self.bandwidth_hz / 2
        return -frequency if self.shape == "down" else frequency

    def samples(self, rng: np.random.Generator, rate_hz: float) -> Samples:
        """The sweep, of mean power one, centred on 0 Hz; it starts at a random phase."""
        phase = 2 * np.pi * (np.cumsum(self.frequency(rate_hz)) / rate_hz + rng.random())
        return _finish(np.exp(1j * phase), rate_hz, ramp_s=5e-6)


def allocation_sizes(most: int) -> list[int]:
    """Resource blocks an LTE uplink allocation may have: 2^a 3^b 5^c up to `most` (3GPP TS 36.211, 5.3.3)."""
    sizes = []
    for size in range(1, most + 1):
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            sizes.append(size)
    return sizes


def _ofdm_bodies(carriers: Baseband, size: int) -> Baseband:
    """Symbols without prefix, (N, size), from subcarriers -26..26, (N, 53)."""
    grid = np.zeros((len(carriers), size), np.complex128)
    grid[:, np.arange(-26, 27) % size] = carriers
    return np.fft.ifft(grid, axis=1)


def _constellation(rng: np.random.Generator, shape: tuple[int, int], order: int) -> Baseband:
    """Random points of QPSK or 16-QAM with a mean power of one."""
    side = math.isqrt(order)
    levels = np.arange(side) * 2.0 - (side - 1)
    points = rng.choice(levels, shape) + 1j * rng.choice(levels, shape)
    return np.asarray(points / math.sqrt(2 * np.mean(levels**2)), np.complex128)


def _zadoff_chu(size: int) -> Baseband:
    """A sequence of constant amplitude: the longest Zadoff-Chu of prime length within `size`, extended (TS 36.211, 5.5.1)."""
    prime = next(n for n in range(size, 1, -1) if all(n % factor for factor in range(2, math.isqrt(n) + 1)))
    n = np.arange(size) % prime
    return np.asarray(np.exp(-1j * np.pi * n * (n + 1) / prime), np.complex128)


def _resampled(signal: Baseband, from_hz: float, to_hz: float, count: int) -> Baseband:
    """The signal at another rate (`scipy.signal.resample_poly`), exactly `count` samples."""
    ratio = Fraction(to_hz / from_hz).limit_denominator(1000)
    moved = resample_poly(signal, ratio.numerator, ratio.denominator) if ratio != 1 else signal
    return np.asarray(np.pad(moved[:count], (0, max(0, count - moved.size))), np.complex128)


def _finish(signal: Baseband, rate_hz: float, ramp_s: float) -> Samples:
    """Raised-cosine ramps at both ends, as a transmitter's amplifier has, and a mean power of one."""
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(max(1, round(ramp_s * rate_hz))) + 0.5) / max(1, round(ramp_s * rate_hz)))
    signal[: ramp.size] *= ramp
    signal[-ramp.size :] *= ramp[::-1]
    return (signal / math.sqrt(np.mean(np.abs(signal) ** 2))).astype(np.complex64)
