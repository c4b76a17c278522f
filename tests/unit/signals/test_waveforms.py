"""Each waveform against its standard: bandwidth, symbol timing, envelope."""

import numpy as np
import pytest
from scipy.signal import welch

from longhaul.signals.waveforms import (
    BluetoothPacket,
    Chirp,
    Emission,
    LteUplinkBurst,
    WifiPacket,
    allocation_sizes,
    length,
)

EMISSIONS = [
    WifiPacket(300),
    WifiPacket(300, 16),
    BluetoothPacket(5, 0.28),
    BluetoothPacket(5, 0.35),
    LteUplinkBurst(6, 4),
    LteUplinkBurst(25, 4, 16),
    LteUplinkBurst(50, 2),
    Chirp(5e-3, 1e9, "up"),
    Chirp(5e-3, 1e9, "down"),
    Chirp(5e-3, 2e9, "triangle"),
]


def rendered(emission: Emission, rate: float, seed: int = 0) -> np.ndarray:
    return emission.samples(np.random.default_rng(seed), rate).astype(np.complex128)


def occupied(signal: np.ndarray, rate: float) -> tuple[float, float]:
    """The band that holds 99 % of the power."""
    frequencies, density = welch(signal, rate, nperseg=4096, return_onesided=False, detrend=False)
    order = np.argsort(frequencies)
    share = np.cumsum(density[order]) / density.sum()
    low, high = np.searchsorted(share, [0.005, 0.995])
    return frequencies[order][low], frequencies[order][high]


@pytest.mark.parametrize("rate", [20e6, 30.72e6, 40e6])
@pytest.mark.parametrize("emission", EMISSIONS, ids=repr)
def test_99_percent_of_the_power_lie_in_the_standards_bandwidth_around_zero(emission: Emission, rate: float) -> None:
    low, high = occupied(rendered(emission, rate), rate)
    # GFSK fills its 1 MHz channel less than OFDM does its subcarriers; Welch sees less of a sweep's ends
    least = 0.75 if isinstance(emission, BluetoothPacket) else 0.9 if isinstance(emission, Chirp) else 0.97
    assert least * emission.bandwidth_hz < high - low < 1.03 * emission.bandwidth_hz
    assert abs(high + low) / 2 < 0.05 * emission.bandwidth_hz


@pytest.mark.parametrize("emission", EMISSIONS, ids=repr)
def test_a_burst_has_exactly_the_stated_length_and_a_mean_power_of_one_at_any_rate(emission: Emission) -> None:
    for rate in (20e6, 23.04e6, 40e6, 61.44e6):
        signal = rendered(emission, rate)
        assert signal.size == length(emission, rate) == round(emission.duration_s * rate)
        assert np.mean(np.abs(signal) ** 2) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("emission", EMISSIONS, ids=repr)
def test_the_same_generator_gives_the_same_bytes_and_another_gives_others(emission: Emission) -> None:
    first, again, other = (rendered(emission, 20e6, seed) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_wifi_has_a_symbol_of_4_us_with_a_prefix_of_a_fifth_of_it() -> None:
    packet = rendered(WifiPacket(50), 20e6)
    symbols = packet[400:-80].reshape(-1, 80)  # after preamble and SIGNAL, without the last, which ramps down
    assert symbols.shape[0] == 49
    assert np.allclose(symbols[:, :16], symbols[:, 64:], atol=1e-5)
    assert not np.allclose(symbols[:, 16:32], symbols[:, 48:64], atol=0.5)


def test_wifi_uses_52_of_64_subcarriers_and_none_in_the_middle() -> None:
    symbols = rendered(WifiPacket(50), 20e6)[400:-80].reshape(-1, 80)[:, 16:]
    power = np.mean(np.abs(np.fft.fft(symbols, axis=1)) ** 2, axis=0)
    used = {(index + 32) % 64 - 32 for index in np.flatnonzero(power > 0.1 * power.max())}
    assert used == {*range(-26, 0), *range(1, 27)}
    assert power[[0, *range(27, 38)]].max() < 1e-6 * power.max()


def test_wifi_begins_with_ten_equal_short_symbols_and_two_equal_long_ones() -> None:
    packet = rendered(WifiPacket(10), 20e6)
    short = packet[16:160].reshape(9, 16)  # without the first, which ramps up
    assert np.allclose(short, short[0], atol=1e-5)
    assert np.allclose(packet[192:256], packet[256:320], atol=1e-5)


@pytest.mark.parametrize("index", [0.28, 0.35])
def test_bluetooth_swings_by_half_its_modulation_index_at_a_million_symbols_a_second(index: float) -> None:
    rate = 40e6
    signal = rendered(BluetoothPacket(5, index), rate)[200:-200]
    frequency = np.diff(np.unwrap(np.angle(signal))) * rate / (2 * np.pi)
    assert np.abs(frequency).max() == pytest.approx(index / 2 * 1e6, rel=0.01)
    crossings = np.flatnonzero(np.diff(np.sign(frequency)))
    moments_us = crossings / rate * 1e6 % 1.0
    spread = np.abs(np.exp(2j * np.pi * moments_us).mean())  # 1 where all lie at the same place in a microsecond
    assert spread > 0.95
    assert np.diff(crossings).min() > 0.8 * rate / 1e6


def test_bluetooth_has_a_constant_envelope_and_the_standards_packet_lengths() -> None:
    assert np.ptp(np.abs(rendered(BluetoothPacket(1), 40e6)[200:-200])) < 1e-3
    assert [BluetoothPacket(slots).duration_s for slots in (1, 3, 5)] == pytest.approx([366e-6, 1622e-6, 2870e-6])


def test_lte_has_seven_symbols_a_slot_with_the_normal_prefixes() -> None:
    # 100 blocks take the 2048-point transform, whose rate is 30.72 MS/s: 160 samples are 5.2 us, 144 are 4.7 us
    burst = rendered(LteUplinkBurst(100, 3), 30.72e6)
    assert burst.size == 3 * 15360
    for slot in burst.reshape(3, 15360):
        at = 0
        for symbol in range(7):
            prefix = 160 if symbol == 0 else 144
            inner = slice(at + 64, at + prefix)  # the burst's ramps are 61 samples
            # a prefix repeats its symbol's end; half a subcarrier turns by half a turn a symbol
            if at + prefix + 2048 < 15360 - 64:
                assert np.allclose(slot[inner], -slot[at + 64 + 2048 : at + prefix + 2048], atol=1e-4)
            at += prefix + 2048
        assert at == 15360


def test_lte_puts_its_reference_symbol_of_constant_amplitude_in_the_middle_of_each_slot() -> None:
    slot = rendered(LteUplinkBurst(100, 3), 30.72e6)[15360:30720]
    half = np.exp(-1j * np.pi * np.arange(2048) / 2048)
    bodies = [slot[160 + 144 * symbol + 2048 * symbol :][:2048] * half for symbol in range(7)]
    amplitudes = [np.abs(np.fft.fft(body)[np.arange(-600, 600)]) for body in bodies]
    assert [bool(amplitude.std() < 0.01 * amplitude.mean()) for amplitude in amplitudes] == [False] * 3 + [True] + [False] * 3


def test_sc_fdma_has_lower_peaks_than_ofdm() -> None:
    def peak_db(signal: np.ndarray) -> float:
        return float(10 * np.log10(np.quantile(np.abs(signal) ** 2, 0.999) / np.mean(np.abs(signal) ** 2)))

    for order in (4, 16):
        ofdm = peak_db(rendered(WifiPacket(500, order), 40e6)[800:])
        sc_fdma = peak_db(rendered(LteUplinkBurst(25, 8, order), 40e6))
        assert sc_fdma < ofdm - 1


@pytest.mark.parametrize(("shape", "signs"), [("up", (1, 1)), ("down", (-1, -1)), ("triangle", (1, -1))])
def test_a_chirp_sweeps_at_the_stated_rate(shape: str, signs: tuple[int, int]) -> None:
    rate, sweep = 40e6, 2e9
    signal = rendered(Chirp(4e-3, sweep, shape), rate)  # type: ignore[arg-type]
    frequency = np.diff(np.unwrap(np.angle(signal))) * rate / (2 * np.pi)
    moments = np.arange(frequency.size) / rate
    for part, sign in zip((slice(1000, 79_000), slice(81_000, 159_000)), signs, strict=True):
        assert np.polyfit(moments[part], frequency[part], 1)[0] == pytest.approx(sign * sweep, rel=1e-3)


def test_an_allocation_has_only_two_three_and_five_as_prime_factors() -> None:
    assert allocation_sizes(30) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 24, 25, 27, 30]
