"""What a synthetic scene is made of, and the presets: a kind for each detector, and one with everything on one band."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longhaul.errors import UserError
from longhaul.signals.noise import NoiseColour

SceneKind = Literal["wifi_bluetooth", "lte_uplink", "creamy_chicken", "mixed"]
Label = Literal["wifi", "bluetooth", "lte_uplink", "creamy_chicken"]

LABELS: dict[SceneKind, tuple[Label, ...]] = {
    "wifi_bluetooth": ("wifi", "bluetooth"),
    "lte_uplink": ("lte_uplink",),
    "creamy_chicken": ("creamy_chicken",),
    "mixed": get_args(Label),
}
SHARED_BAND_HZ = (2_422e6, 2_452e6)  # where the centre of a capture lies that several kinds share


class SceneSettings(BaseModel):
    """One kind of scene. Lengths in seconds, frequencies in Hz, ranges as (lowest, highest)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: SceneKind
    sample_rate_hz: float = Field(40e6, gt=1e6)
    duration_s: float = Field(2.0, gt=0)
    chunk_s: float = Field(0.2, gt=0)
    """Length of the chunks that tiles will be made of: densities count per chunk, and one burst lies over a chunk's edge."""
    center_hz: tuple[float, float] = SHARED_BAND_HZ
    """The capture's centre is drawn from this range in steps of 0.5 MHz."""
    snr_db: tuple[float, float] = (15.0, 30.0)
    """Power of a burst over the noise power in the burst's bandwidth."""
    objects_per_chunk: dict[Label, float]
    """Bursts to expect in a chunk, by label."""
    burst_s: tuple[float, float] = (0.2e-3, 3e-3)
    """Lengths of a burst where the standard leaves it open: Wi-Fi, LTE (whole milliseconds) and chirps."""
    own_burst_s: dict[Label, tuple[float, float]] = {}
    """Lengths for labels that do not keep to `burst_s`, in scenes of several kinds."""
    bluetooth_slots: tuple[float, float, float] = (0.6, 0.25, 0.15)
    """Shares of packets of 1, 3 and 5 slots."""
    sweeps_hz_per_s: tuple[float, ...] = (1e9, 2e9, 4e9)
    """Sweep rates of the chirps."""
    follow_ups: float = Field(0.1, ge=0, le=1)
    """Share of Wi-Fi packets that the next one follows after DIFS and a short backoff."""
    acknowledged: float = Field(0.0, ge=0, le=1)
    """Share of Wi-Fi packets that a 44 us acknowledgement follows after SIFS: thinner than a pixel in most tiles."""
    hopping: float = Field(0.25, ge=0, le=1)
    """Share of LTE allocations that change their resource blocks between the slots of a subframe."""
    collisions: float = Field(0.05, ge=0, le=1)
    """Share of the bursts that stay although they meet one of their own label in time and frequency."""
    noise: NoiseColour = NoiseColour()
    edge_cases: bool = True
    """Add bursts over the capture's start and end, over a chunk's edge, and partly outside the band."""
    clutter: bool = False
    """Add emitters of all other kinds, without annotations."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels of this kind of scene."""
        return LABELS[self.kind]

    @property
    def clutter_labels(self) -> tuple[Label, ...]:
        """The emitters that are on the air without an annotation."""
        return tuple(label for label in get_args(Label) if label not in self.labels) if self.clutter else ()

    def lengths_s(self, label: Label) -> tuple[float, float]:
        """The shortest and the longest burst of a label."""
        return self.own_burst_s.get(label, self.burst_s)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("center_hz", "snr_db", "burst_s"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low:g} is above {high:g}; give the lower one first")
        for label, (low, high) in self.own_burst_s.items():
            if low > high:
                raise ValueError(f"own_burst_s.{label}: {low:g} is above {high:g}; give the lower one first")
        if self.clutter and not self.clutter_labels:
            raise ValueError(f"clutter: {self.kind} has all labels, so nothing is left to be clutter")
        missing = [label for label in (*self.labels, *self.clutter_labels) if self.objects_per_chunk.get(label, 0.0) <= 0]
        if missing:
            raise ValueError(f"objects_per_chunk: give a number above 0 for {', '.join(missing)}")
        return self


def preset(kind: str, *, small: bool = False, clutter: bool = False) -> SceneSettings:
    """The settings of a detector's scenes.

    Args:
        kind: wifi_bluetooth, lte_uplink, creamy_chicken, or mixed for all labels on one band.
        small: 100 ms for ten chunks of 10 ms, for training on two cores; otherwise 2 s for ten chunks of 200 ms.
        clutter: the labels of the other kinds are on the air too, as in the mixed kind and on its band, without annotations.

    Raises:
        UserError: there is no such kind, or no other label.
    """
    if kind not in get_args(SceneKind):
        raise UserError(f"there is no kind of scene called {kind}", f"Choose one of {', '.join(get_args(SceneKind))}")
    chosen: SceneKind = next(name for name in LABELS if name == kind)
    if clutter and chosen == "mixed":
        raise UserError("--clutter: mixed scenes have every label, so nothing is left to be clutter", "Leave one of the two out")
    presets = _SMALL if small else _FULL
    lengths = {"duration_s": 0.1, "chunk_s": 0.01} if small else {"duration_s": 2.0, "chunk_s": 0.2}
    values = {**(presets["mixed"] if clutter else {}), **presets[chosen], **lengths}
    if clutter:
        values |= {"center_hz": SHARED_BAND_HZ, "clutter": True}
    return SceneSettings.model_validate({"kind": chosen, **values})


_SHARED_SMALL = {"wifi": 1.0, "bluetooth": 1.0, "lte_uplink": 1.5, "creamy_chicken": 0.5}  # of kinds that share a band
_SHARED_FULL = {"wifi": 6.0, "bluetooth": 8.0, "lte_uplink": 5.0, "creamy_chicken": 3.0}
_UPLINK_HZ = (1_747e6, 1_747e6)

_SMALL: dict[SceneKind, dict[str, object]] = {
    "wifi_bluetooth": {"objects_per_chunk": {**_SHARED_SMALL, "wifi": 2.0, "bluetooth": 2.5}},
    "lte_uplink": {
        "sample_rate_hz": 20e6,
        "center_hz": _UPLINK_HZ,
        "objects_per_chunk": {**_SHARED_SMALL, "lte_uplink": 4.0},
        "burst_s": (1e-3, 4e-3),
    },
    "creamy_chicken": {
        "objects_per_chunk": {**_SHARED_SMALL, "creamy_chicken": 3.0},
        "burst_s": (0.8e-3, 4e-3),
        "collisions": 0.3,
    },
    "mixed": {
        "objects_per_chunk": _SHARED_SMALL,
        "own_burst_s": {"wifi": (0.2e-3, 3e-3), "lte_uplink": (1e-3, 4e-3), "creamy_chicken": (0.8e-3, 4e-3)},
    },
}
_FULL: dict[SceneKind, dict[str, object]] = {
    "wifi_bluetooth": {
        "objects_per_chunk": {**_SHARED_FULL, "wifi": 12.0, "bluetooth": 16.0},
        "burst_s": (0.6e-3, 3e-3),
        "bluetooth_slots": (0.1, 0.3, 0.6),
    },
    "lte_uplink": {
        "sample_rate_hz": 30.72e6,
        "center_hz": _UPLINK_HZ,
        "objects_per_chunk": {**_SHARED_FULL, "lte_uplink": 15.0},
        "burst_s": (1e-3, 10e-3),
        "hopping": 0.1,
    },
    "creamy_chicken": {
        "objects_per_chunk": {**_SHARED_FULL, "creamy_chicken": 8.0},
        "burst_s": (5e-3, 40e-3),
        "sweeps_hz_per_s": (0.1e9, 0.2e9, 0.4e9),
        "collisions": 0.3,
    },
    "mixed": {
        "objects_per_chunk": _SHARED_FULL,
        "own_burst_s": {"wifi": (0.6e-3, 3e-3), "lte_uplink": (1e-3, 10e-3), "creamy_chicken": (5e-3, 40e-3)},
        "bluetooth_slots": (0.1, 0.3, 0.6),
        "hopping": 0.1,
        "sweeps_hz_per_s": (0.1e9, 0.2e9, 0.4e9),
    },
}
