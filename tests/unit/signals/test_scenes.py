"""Scenes: levels, annotations against what is on the air, edge cases, and the same bytes for the same seed."""

import tracemalloc
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.signal import welch

from longhaul.errors import UserError
from longhaul.signals.annotations import Annotation
from longhaul.signals.noise import Noise, NoiseColour
from longhaul.signals.scene_settings import LABELS, SceneSettings, preset
from longhaul.signals.scenes import BLOCK, Scene
from longhaul.signals.traffic import Transmission

KINDS = ["wifi_bluetooth", "lte_uplink", "creamy_chicken"]
EVERY = [*KINDS, "mixed"]
DURATION_S = 0.05


def settings_of(kind: str, **changes: object) -> SceneSettings:
    values = preset(kind, small=True).model_dump() | {"duration_s": DURATION_S} | changes
    return SceneSettings.model_validate(values)


def samples(scene: Scene, *, with_noise: bool = True) -> np.ndarray:
    return np.concatenate(list(scene.blocks(with_noise=with_noise)))


@cache
def rendered(kind: str) -> tuple[Scene, np.ndarray, np.ndarray]:
    """A scene, its bursts alone, and its noise alone."""
    scene = Scene(settings_of(kind), seed=1)
    clean = samples(scene, with_noise=False)
    return scene, clean, samples(scene) - clean


def density(signal: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    frequencies, power = welch(signal, rate, nperseg=min(4096, signal.size), return_onesided=False, detrend=False)
    order = np.argsort(frequencies)
    return frequencies[order], power[order]


def power_between(signal: np.ndarray, rate: float, low: float, high: float) -> float:
    frequencies, power = density(signal, rate)
    inside = (frequencies >= low) & (frequencies <= high)
    return float(power[inside].mean() * (high - low))


def lonely(scene: Scene) -> Iterator[tuple[Transmission, Annotation]]:
    """Bursts wholly inside capture and band that nothing else meets in time, each with its annotation."""
    rate = scene.settings.sample_rate_hz
    for burst in scene.transmissions:
        half = burst.emission.bandwidth_hz / 2
        whole = burst.start_s > 0 and burst.end_s < scene.settings.duration_s and burst.reach_inside(rate / 2) == 1
        others = [other for other in scene.transmissions if other is not burst]
        if whole and not any(burst.start_s < other.end_s + 1e-5 and other.start_s < burst.end_s + 1e-5 for other in others):
            start = round(burst.start_s * rate)
            mine = [one for one in scene.annotations if one.start == start and abs(one.low_hz - burst.offset_hz + half) < 1e3]
            assert len(mine) == 1
            yield burst, mine[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_burst_has_the_stated_power_over_the_noise_in_its_bandwidth(kind: str) -> None:
    scene, clean, noise = rendered(kind)
    rate = scene.settings.sample_rate_hz
    checked = 0
    for burst, box in lonely(scene):
        signal_power = np.mean(np.abs(clean[box.start : box.stop]) ** 2)
        # the constant offset at 0 Hz is a spike beside the noise, not part of it
        noise_power = power_between(noise - noise.mean(), rate, box.low_hz, box.high_hz)
        assert 10 * np.log10(signal_power / noise_power) == pytest.approx(burst.snr_db, abs=0.5)
        assert 15 <= burst.snr_db <= 30
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_air_is_silent_outside_the_annotations_and_busy_at_both_ends_of_each(kind: str) -> None:
    scene, clean, _ = rendered(kind)
    inside = np.zeros(scene.samples, bool)
    for box in scene.annotations:
        inside[box.start : box.stop] = True
    assert not np.any(clean[~inside])
    for _, box in lonely(scene):
        power = np.abs(clean[box.start : box.stop]) ** 2
        edge = round(20e-6 * scene.settings.sample_rate_hz)
        assert min(power[:edge].mean(), power[-edge:].mean()) > 0.2 * power.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_a_boxs_edges_are_those_of_the_bursts_spectrum(kind: str) -> None:
    scene, clean, _ = rendered(kind)
    rate = scene.settings.sample_rate_hz
    for _, box in lonely(scene):
        frequencies, power = density(clean[box.start : box.stop], rate)
        share = np.cumsum(power) / power.sum()
        low, high = frequencies[np.searchsorted(share, [0.01, 0.99])]
        bin_hz = frequencies[1] - frequencies[0]
        width = box.high_hz - box.low_hz
        assert box.low_hz - bin_hz <= low <= box.low_hz + 0.2 * width + bin_hz
        assert box.high_hz - 0.2 * width - bin_hz <= high <= box.high_hz + bin_hz


@pytest.mark.parametrize("kind", EVERY)
def test_annotations_lie_inside_capture_and_band_and_hold_every_label(kind: str) -> None:
    for seed in range(3):
        scene = Scene(settings_of(kind), seed)
        half = scene.settings.sample_rate_hz / 2
        for box in scene.annotations:
            assert 0 <= box.start < box.stop <= scene.samples
            assert -half <= box.low_hz < box.high_hz <= half
        assert {box.label for box in scene.annotations} == set(LABELS[scene.settings.kind])


@pytest.mark.parametrize("kind", EVERY)
def test_every_scene_has_bursts_over_the_edges_of_capture_chunk_and_band(kind: str) -> None:
    for seed in range(3):
        scene = Scene(settings_of(kind), seed)
        rate = scene.settings.sample_rate_hz
        chunk = round(scene.settings.chunk_s * rate)
        assert any(box.start == 0 for box in scene.annotations)
        assert any(box.stop == scene.samples for box in scene.annotations)
        assert any(box.start // chunk != (box.stop - 1) // chunk for box in scene.annotations)
        # a sweep's box ends at its last momentary frequency before the edge
        assert any(rate / 2 - max(-box.low_hz, box.high_hz) < 1e3 for box in scene.annotations)


def test_a_burst_over_the_bands_edge_does_not_fold_back_at_the_other() -> None:
    one = Scene(settings_of("wifi_bluetooth", center_hz=(2_450e6, 2_450e6), objects_per_chunk={"wifi": 4, "bluetooth": 0.001}), 5)
    clean = samples(one, with_noise=False)
    for box in one.annotations:
        if box.high_hz == 20e6 and not any(o is not box and o.start < box.stop and box.start < o.stop for o in one.annotations):
            frequencies, power = density(clean[box.start : box.stop], 40e6)
            within = power[(frequencies > 5e6) & (frequencies < 18e6)].mean()  # channel 11, at +12 MHz, reaches to +20.3 MHz
            folded = power[(frequencies > -19e6) & (frequencies < -18e6)].mean()
            assert folded < 1e-3 * within
            break
    else:
        pytest.fail("no burst to look at")


@pytest.mark.parametrize("kind", EVERY)
def test_a_seed_and_a_number_decide_every_byte(kind: str) -> None:
    settings = settings_of(kind, duration_s=0.02)
    first, again = Scene(settings, 4, 1), Scene(settings, 4, 1)
    assert first.annotations == again.annotations
    assert samples(first).tobytes() == samples(again).tobytes()
    for other in (Scene(settings, 5, 1), Scene(settings, 4, 2), Scene(settings, 5, 0)):
        assert other.annotations != first.annotations
        assert other.noise().next(1000).tobytes() != first.noise().next(1000).tobytes()


def test_bluetooth_hops_over_its_channels_on_slots_of_625_us() -> None:
    settings = settings_of("wifi_bluetooth", duration_s=1.0, edge_cases=False)
    scene = Scene(settings, 2)
    hops = [burst for burst in scene.transmissions if burst.label == "bluetooth"]
    slots = np.array([(burst.start_s - hops[0].start_s) / 625e-6 for burst in hops])
    assert np.abs(slots - slots.round()).max() < 1e-6
    channels = np.array([(burst.offset_hz + scene.center_hz - 2_402e6) / 1e6 for burst in hops])
    assert np.all(channels == channels.round())
    assert channels.min() >= 0
    assert channels.max() <= 78
    assert len(set(channels)) >= 38  # of about 40 in the band
    assert np.mean(np.diff(channels) != 0) > 0.9


def test_wifi_packets_of_a_channel_keep_the_gaps_of_the_standard() -> None:
    settings = settings_of("wifi_bluetooth", duration_s=1.0, acknowledged=0.5, follow_ups=0.5, edge_cases=False)
    scene = Scene(settings, 2)
    packets = [burst for burst in scene.transmissions if burst.label == "wifi"]
    gaps = []
    for channel in {burst.offset_hz for burst in packets}:
        assert (channel + scene.center_hz) in (2_412e6, 2_437e6, 2_462e6)
        own = [burst for burst in packets if burst.offset_hz == channel]
        gaps += [(later.start_s - earlier.end_s) * 1e6 for earlier, later in pairwise(own)]
    assert min(gaps) == pytest.approx(10)  # SIFS, before an acknowledgement
    assert min(gap for gap in gaps if gap > 10.001) >= 28 - 0.001  # DIFS, and then a backoff
    assert sum(gap < 28 + 31 * 9 + 0.001 for gap in gaps if gap > 10.001) > 10
    lengths = [burst.emission.duration_s for burst in packets if burst.emission.duration_s > 45e-6]
    assert 0.19e-3 < min(lengths) < 0.5e-3
    assert 2e-3 < max(lengths) < 3.01e-3


def test_lte_users_keep_to_the_blocks_and_slots_of_the_grid_and_some_hop() -> None:
    scene = Scene(settings_of("lte_uplink", duration_s=0.3, edge_cases=False, collisions=0.0), 2)
    bursts = scene.transmissions
    slots = np.array([(burst.start_s - bursts[0].start_s) / 0.5e-3 for burst in bursts])
    assert np.abs(slots - slots.round()).max() < 1e-6
    lows = np.array([(burst.offset_hz - burst.emission.bandwidth_hz / 2) / 180e3 for burst in bursts])
    assert np.abs(lows - lows.round()).max() < 1e-6
    assert not any(a.meets(b) for index, a in enumerate(bursts) for b in bursts[:index])
    half_slots = [burst for burst in bursts if burst.emission.duration_s == 0.5e-3]
    mirrored = [
        a for a in half_slots for b in half_slots if b.start_s - a.start_s == pytest.approx(0.5e-3) and a.snr_db == b.snr_db
    ]
    assert len(mirrored) * 2 == len(half_slots) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_clutter_is_on_the_air_and_in_no_annotation(kind: str) -> None:
    scene = Scene(settings_of(kind, clutter=True), 3)
    assert any(burst.label is None for burst in scene.transmissions)
    assert {box.label for box in scene.annotations} == set(LABELS[scene.settings.kind])
    assert not any(burst.label is None for burst in Scene(settings_of(kind), 3).transmissions)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_preset_with_clutter_shares_the_mixed_kinds_band_and_keeps_the_detectors_own_bursts(kind: str, small: bool) -> None:
    alone, beside, mixed = preset(kind, small=small), preset(kind, small=small, clutter=True), preset("mixed", small=small)
    assert beside.center_hz == mixed.center_hz
    assert {*beside.labels, *beside.clutter_labels} == set(mixed.labels)
    assert all(beside.objects_per_chunk[label] == alone.objects_per_chunk[label] for label in alone.labels)
    for label in set(alone.labels) - {"bluetooth"}:
        assert beside.lengths_s(label) == alone.lengths_s(label) == mixed.lengths_s(label)
    for label in set(beside.clutter_labels) - {"bluetooth"}:  # whose packets have the lengths of the standard
        assert beside.lengths_s(label) == mixed.lengths_s(label)


def test_each_burst_names_its_sender_and_no_sender_is_on_the_air_twice_at_once() -> None:
    scene = Scene(settings_of("mixed", duration_s=0.3, collisions=0.0), 2)
    senders: dict[str, list[Transmission]] = {}
    for burst in scene.transmissions:
        senders.setdefault(burst.emitter, []).append(burst)
    for name, bursts in senders.items():
        assert {burst.label for burst in bursts} == {name.partition("/")[0]}
        assert all(later.start_s >= earlier.end_s - 1e-9 for earlier, later in pairwise(bursts))
    assert len(senders["bluetooth/0"]) > 20
    stations = {name: bursts for name, bursts in senders.items() if name.startswith("wifi/") and "edge" not in name}
    assert {name.split("/")[1] for name in stations} <= {"1", "6", "11"}
    for bursts in stations.values():
        assert len({(burst.offset_hz, burst.snr_db) for burst in bursts}) == 1
    hopping = [bursts for name, bursts in senders.items() if name.startswith("lte_uplink") and len(bursts) == 2]
    assert hopping
    assert all(first.offset_hz != second.offset_hz for first, second in hopping)
    assert {box.emitter for box in scene.annotations} == set(senders)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("kind", EVERY)
def test_the_presets_put_a_handful_of_objects_on_a_tile(kind: str, small: bool) -> None:
    most = 8 if small else 35
    settings = preset(kind, small=small)
    assert settings.duration_s / settings.chunk_s == pytest.approx(10)
    counts = []
    for seed in range(5):
        scene = Scene(settings, seed)
        chunk = round(settings.chunk_s * settings.sample_rate_hz)
        counts += [
            sum(box.start < end and box.stop > end - chunk for box in scene.annotations) for end in chunk * np.arange(1, 11)
        ]
    assert 2 <= np.mean(counts) <= most
    assert max(counts) <= 2.5 * most


def test_noise_has_the_slope_roll_off_and_spike_that_were_asked_for() -> None:
    colour = NoiseColour(slope_db_per_decade=-6.0, roll_off_db=5.0, dc_spike_db=-10.0)
    noise = Noise(colour, 10e6, 0.01, np.random.default_rng(0)).next(1 << 20)
    assert np.mean(np.abs(noise - noise.mean()) ** 2) == pytest.approx(1e-4, rel=0.02)
    assert abs(noise.mean()) ** 2 == pytest.approx(1e-5, rel=0.05)
    frequencies, power = density(noise - noise.mean(), 10e6)

    def level_db(around: float) -> float:
        return float(10 * np.log10(power[np.abs(np.abs(frequencies) - around) < 0.02 * around].mean()))

    assert level_db(0.4e6) - level_db(4e6) == pytest.approx(6, abs=0.4)
    assert level_db(4.4e6) - level_db(4.97e6) == pytest.approx(5, abs=0.8)


def test_a_long_capture_needs_memory_for_a_few_blocks_only() -> None:
    scene = Scene(settings_of("lte_uplink", duration_s=1.0), 0)
    tracemalloc.start()
    sizes = [block.size for block in scene.blocks()]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(sizes) <= BLOCK
    assert sum(sizes) == scene.samples == 20_000_000  # 160 MB as complex64
    assert peak < 80e6


def test_full_scale_is_not_passed() -> None:
    for kind in KINDS:
        _, clean, noise = rendered(kind)
        assert max(np.abs((clean + noise).real).max(), np.abs((clean + noise).imag).max()) < 1


def test_an_unknown_kind_and_a_range_upside_down_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="zigbee"):
        preset("zigbee")
    with pytest.raises(ValidationError, match="snr_db: 30 is above 15"):
        settings_of("lte_uplink", snr_db=(30, 15))
    with pytest.raises(ValidationError, match=r"own_burst_s\.wifi: 0\.003 is above 0\.001"):
        settings_of("mixed", own_burst_s={"wifi": (0.003, 0.001)})
    with pytest.raises(UserError, match="mixed scenes have every label"):
        preset("mixed", clutter=True)
    with pytest.raises(ValidationError, match="clutter: mixed has all labels"):
        settings_of("mixed", clutter=True)
    with pytest.raises(ValidationError, match="objects_per_chunk: give a number above 0 for wifi"):
        settings_of("wifi_bluetooth", objects_per_chunk={"bluetooth": 1.0})
