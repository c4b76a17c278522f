"""Who transmits what, when and where: the plan of a synthetic scene, before a sample of it exists."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, TypeVar

import numpy as np

from longhaul.signals.scene_settings import SceneSettings
from longhaul.signals.waveforms import (
    BLUETOOTH_SLOT_S,
    LTE_BLOCK_HZ,
    LTE_SLOT_S,
    WIFI_PREAMBLE_S,
    WIFI_SYMBOL_S,
    BluetoothPacket,
    Chirp,
    Emission,
    LteUplinkBurst,
    WifiPacket,
    allocation_sizes,
)

WIFI_SIFS_S = 10e-6
WIFI_DIFS_S = 28e-6
WIFI_BACKOFF_SLOT_S = 9e-6
WIFI_ACKNOWLEDGEMENT = WifiPacket(symbols=6)  # 44 us
WIFI_CHANNELS_HZ = tuple(2_412e6 + 5e6 * number for number in range(13))  # 1 to 13
WIFI_USUAL_HZ = (2_412e6, 2_437e6, 2_462e6)  # 1, 6 and 11
BLUETOOTH_CHANNELS_HZ = tuple(2_402e6 + 1e6 * number for number in range(79))

ORDERS: tuple[Literal[4, 16], ...] = (4, 16)
SLOTS: tuple[Literal[1, 3, 5], ...] = (1, 3, 5)
SHAPES: tuple[Literal["up", "down", "triangle"], ...] = ("up", "down", "triangle")

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Transmission:
    """One burst of the plan.

    Args:
        label: its label, None for clutter, which nobody annotates.
        emission: the waveform.
        start_s: when it begins; before 0 it was on the air before the capture began.
        offset_hz: its centre, relative to the capture's centre.
        snr_db: its power over the noise power in its bandwidth.
        emitter: who sends it, such as `wifi/6/0`: a station on channel 6, a piconet, a user of the cell, or a chirper.
    """

    label: str | None
    emission: Emission
    start_s: float
    offset_hz: float
    snr_db: float
    emitter: str

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.start_s + self.emission.duration_s

    def reach_inside(self, half_band_hz: float) -> float:
        """The share of its bandwidth that lies inside the captured band."""
        half = self.emission.bandwidth_hz / 2
        inside = min(self.offset_hz + half, half_band_hz) - max(self.offset_hz - half, -half_band_hz)
        return max(0.0, inside / (2 * half))

    def meets(self, other: "Transmission") -> bool:
        """Whether the two share time and frequency."""
        apart_hz = abs(self.offset_hz - other.offset_hz)
        return (
            self.start_s < other.end_s
            and other.start_s < self.end_s
            and apart_hz < (self.emission.bandwidth_hz + other.emission.bandwidth_hz) / 2
        )


Planner = Callable[[SceneSettings, float, np.random.Generator], Iterator[Transmission]]


def wifi_traffic(settings: SceneSettings, center_hz: float, rng: np.random.Generator) -> Iterator[Transmission]:
    """Stations on channels 1, 6 and 11 (those in the band): packets, some followed soon by another or by an acknowledgement."""
    half = settings.sample_rate_hz / 2
    channels = {_wifi_channel(f): f - center_hz for f in WIFI_USUAL_HZ if abs(f - center_hz) + 2e6 < half} or {0: 0.0}
    per_channel = settings.objects_per_chunk["wifi"] / len(channels)
    low, high = settings.lengths_s("wifi")
    idle_s = max(settings.chunk_s / per_channel - (low + high) / 2, low)
    for channel, offset in channels.items():
        stations = rng.uniform(*settings.snr_db, 3)
        now = -rng.uniform(0, idle_s)
        while now < settings.duration_s:
            wanted_s = _log_uniform(rng, low, high)
            order = _pick(rng, ORDERS)
            packet = WifiPacket(max(1, round((wanted_s - WIFI_PREAMBLE_S) / WIFI_SYMBOL_S)), order)
            station = int(rng.choice(3))
            yield Transmission("wifi", packet, now, offset, float(stations[station]), f"wifi/{channel}/{station}")
            now += packet.duration_s
            if rng.random() < settings.acknowledged:
                now += WIFI_SIFS_S
                station = int(rng.choice(3))
                emitter = f"wifi/{channel}/{station}"
                yield Transmission("wifi", WIFI_ACKNOWLEDGEMENT, now, offset, float(stations[station]), emitter)
                now += WIFI_ACKNOWLEDGEMENT.duration_s
            if rng.random() < settings.follow_ups:
                now += WIFI_DIFS_S + WIFI_BACKOFF_SLOT_S * int(rng.integers(4, 32))
            else:
                now += WIFI_DIFS_S + rng.exponential(idle_s)


def bluetooth_traffic(settings: SceneSettings, center_hz: float, rng: np.random.Generator) -> Iterator[Transmission]:
    """One piconet: a new channel of the 79 for every packet, packets on a grid of 625 us; hops outside the band are not seen."""
    half = settings.sample_rate_hz / 2
    inside = np.mean([abs(f - center_hz) + 0.25e6 < half for f in BLUETOOTH_CHANNELS_HZ])
    weights = np.array(settings.bluetooth_slots) / sum(settings.bluetooth_slots)
    slots_seen = settings.chunk_s / BLUETOOTH_SLOT_S * max(float(inside), 1 / 79) / float(weights @ (1, 3, 5))
    load = min(1.0, settings.objects_per_chunk["bluetooth"] / slots_seen)
    devices = rng.uniform(*settings.snr_db, 2)  # master and slave take turns
    index = float(rng.uniform(0.28, 0.35))
    now = -rng.uniform(0, 5) * BLUETOOTH_SLOT_S
    turn = 0
    while now < settings.duration_s:
        slots = SLOTS[int(rng.choice(3, p=weights))]
        offset = _pick(rng, BLUETOOTH_CHANNELS_HZ) - center_hz
        if rng.random() < load and abs(offset) + 0.25e6 < half:
            yield Transmission("bluetooth", BluetoothPacket(slots, index), now, offset, float(devices[turn]), "bluetooth/0")
        now += slots * BLUETOOTH_SLOT_S
        turn = 1 - turn


def lte_traffic(settings: SceneSettings, center_hz: float, rng: np.random.Generator) -> Iterator[Transmission]:
    """A cell's uplink: users on free resource blocks for whole subframes, some hopping between the halves slot by slot."""
    total = next((blocks for blocks in (100, 75, 50, 25, 15, 6) if blocks * LTE_BLOCK_HZ < settings.sample_rate_hz), 6)
    low, high = (max(1, round(edge / (2 * LTE_SLOT_S))) for edge in settings.lengths_s("lte_uplink"))
    subframes = math.ceil(settings.duration_s / (2 * LTE_SLOT_S)) + high + 1
    taken = np.zeros((subframes + high + 2, total), bool)
    sizes = [size for size in allocation_sizes(max(1, total // 2)) if size >= min(4, total)] or [1]
    per_subframe = settings.objects_per_chunk["lte_uplink"] * 2 * LTE_SLOT_S / settings.chunk_s
    phase_s = -rng.uniform(0, 1) * 2 * LTE_SLOT_S - high * 2 * LTE_SLOT_S
    user = count()
    for subframe in range(subframes):
        for _ in range(int(rng.poisson(per_subframe))):
            hops = bool(rng.random() < settings.hopping)
            size = int(rng.choice(sizes))
            lasting = 1 if hops else int(rng.integers(low, high + 1))
            first = int(rng.integers(0, total - size + 1))
            mirrored = total - size - first
            spots = [first, mirrored] if hops and abs(first - mirrored) >= size + 2 else [first]
            busy = any(taken[subframe : subframe + lasting + 1, max(0, spot - 2) : spot + size + 2].any() for spot in spots)
            if busy and rng.random() >= settings.collisions:
                continue
            for spot in spots:
                taken[subframe : subframe + lasting + 1, spot : spot + size] = True
            order = _pick(rng, ORDERS)
            snr_db = float(rng.uniform(*settings.snr_db))
            each = 2 * lasting if len(spots) == 1 else 1
            emitter = f"lte_uplink/{next(user)}"
            for part in range(len(spots)):
                start_s = phase_s + subframe * 2 * LTE_SLOT_S + part * LTE_SLOT_S
                offset = (spots[part] + size / 2 - total / 2) * LTE_BLOCK_HZ
                yield Transmission("lte_uplink", LteUplinkBurst(size, each, order), start_s, offset, snr_db, emitter)


def chirp_traffic(settings: SceneSettings, center_hz: float, rng: np.random.Generator) -> Iterator[Transmission]:
    """Sweeps at random moments, with one of the stated rates, wholly inside the band."""
    gap_s = settings.chunk_s / settings.objects_per_chunk["creamy_chicken"]
    now = -rng.exponential(gap_s)
    shortest, longest_s = settings.lengths_s("creamy_chicken")
    for number in count():
        if now >= settings.duration_s:
            return
        sweep = float(rng.choice(settings.sweeps_hz_per_s))
        longest = min(longest_s, 0.4 * settings.sample_rate_hz / sweep)
        shape = _pick(rng, SHAPES)
        chirp = Chirp(_log_uniform(rng, min(shortest, longest), longest), sweep, shape)
        room = 0.48 * settings.sample_rate_hz - chirp.bandwidth_hz / 2
        offset, snr_db = rng.uniform(-room, room), float(rng.uniform(*settings.snr_db))
        yield Transmission("creamy_chicken", chirp, now, offset, snr_db, f"creamy_chicken/{number}")
        now += rng.exponential(gap_s)


PLANNERS: dict[str, Planner] = {
    "wifi": wifi_traffic,
    "bluetooth": bluetooth_traffic,
    "lte_uplink": lte_traffic,
    "creamy_chicken": chirp_traffic,
}


def plan_traffic(settings: SceneSettings, center_hz: float, rng: np.random.Generator) -> list[Transmission]:
    """All bursts of a scene in order of time: edge cases first of all, then the traffic that does not collide with its own kind.

    A share `settings.collisions` of the bursts that would collide stays. Bursts of different labels meet as they please.
    """
    planned: list[Transmission] = []
    for label in settings.labels:
        traffic = list(PLANNERS[label](settings, center_hz, rng))
        edges = _edge_cases(traffic, settings, center_hz, rng) if settings.edge_cases else []
        planned += _without_collisions(edges, traffic, settings.collisions, rng)
    for label in settings.clutter_labels:
        planned += [replace(burst, label=None) for burst in PLANNERS[label](settings, center_hz, rng)]
    seen = [burst for burst in planned if burst.start_s < settings.duration_s and burst.end_s > 0]
    return sorted(seen, key=lambda burst: (burst.start_s, burst.offset_hz))


def _edge_cases(
    traffic: list[Transmission], settings: SceneSettings, center_hz: float, rng: np.random.Generator
) -> list[Transmission]:
    """A burst over the capture's start, one over its end, one over a chunk's edge, one partly outside the band."""
    if not traffic:
        return []
    edges = [0.0, settings.duration_s]
    chunks = round(settings.duration_s / settings.chunk_s)
    if chunks > 1:
        edges.append(settings.chunk_s * int(rng.integers(1, chunks)))
    bursts: list[Transmission] = []
    for edge_s in edges:
        burst = _pick(rng, traffic)
        emitter = f"{burst.label}/edge/{len(bursts)}"  # one of its own: whom it resembles may be on the air at that moment
        bursts.append(replace(burst, start_s=edge_s - rng.uniform(0.3, 0.7) * burst.emission.duration_s, emitter=emitter))
    partial = _pick(rng, traffic)
    offset = _beyond_the_edge(partial, settings.sample_rate_hz / 2, center_hz, rng)
    if offset is not None:
        moment = rng.uniform(0.1, 0.9) * settings.duration_s
        bursts.append(replace(partial, start_s=moment, offset_hz=offset, emitter=f"{partial.label}/edge/{len(bursts)}"))
    return bursts


def _beyond_the_edge(burst: Transmission, half_hz: float, center_hz: float, rng: np.random.Generator) -> float | None:
    """A centre at which a burst is 30 to 90 % inside the band, where its standard has such a channel."""
    grid = {"wifi": WIFI_CHANNELS_HZ, "bluetooth": BLUETOOTH_CHANNELS_HZ}.get(burst.label or "")
    if grid is None:
        return float(rng.choice([-1, 1]) * (half_hz + rng.uniform(-0.3, 0.2) * burst.emission.bandwidth_hz))
    offsets = [f - center_hz for f in grid]
    partial = [offset for offset in offsets if 0.3 <= replace(burst, offset_hz=offset).reach_inside(half_hz) <= 0.9]
    return float(rng.choice(partial)) if partial else None


def _without_collisions(
    kept: list[Transmission], traffic: list[Transmission], share: float, rng: np.random.Generator
) -> list[Transmission]:
    kept = list(kept)
    for burst in traffic:
        if rng.random() < share or not any(burst.meets(other) for other in kept):
            kept.append(burst)
    return kept


def _wifi_channel(frequency_hz: float) -> int:
    return round((frequency_hz - 2_407e6) / 5e6)


def _pick(rng: np.random.Generator, options: Sequence[Choice]) -> Choice:
    return options[int(rng.integers(len(options)))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
