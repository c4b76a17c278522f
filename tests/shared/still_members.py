"""Members of an ensemble that answer one box a tile, when they are told to; and a front end that takes its time."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from grid_detector import CHUNK_SAMPLES, SAMPLE_RATE_HZ, SIDE, TILES

from longhaul.serving.detection.answers import ChunkAnswer
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble import Ensemble, EnsembleSettings, Member
from longhaul.signals.front_end import FrontEnd
from longhaul.signals.tile_folder import TileSettings


def signal(seed: int = 0, samples: int = CHUNK_SAMPLES, **place) -> SignalChunk:
    """Noise with a tone that comes and goes."""
    rng = np.random.default_rng(seed)
    times = np.arange(samples) / SAMPLE_RATE_HZ
    iq = 0.01 * (rng.standard_normal(samples) + 1j * rng.standard_normal(samples))
    iq += 0.5 * np.exp(2j * np.pi * 2e5 * times) * (np.sin(2 * np.pi * 300 * times + seed) > 0)
    return SignalChunk(torch.from_numpy(iq.astype(np.complex64)), SAMPLE_RATE_HZ, **place)


class Still:
    """Answers one box a tile after `delay_s` (None: never), with a label of its own; remembers the tiles."""

    def __init__(self, delay_s: float | None = 0.01, error: Exception | None = None, score: float = 0.9) -> None:
        self.delay_s, self.error, self.score = delay_s, error, score
        self.tiles: list[torch.Tensor] = []
        self.deadlines: list[float | None] = []
        self.cancelled = 0
        self.expected = 0.01
        self.seconds_per_sample = 0.01

    def expected_s(self, samples: int) -> float:
        return self.expected

    async def infer(self, samples: torch.Tensor, *, deadline: float | None) -> dict[str, np.ndarray]:
        self.tiles.append(samples)
        self.deadlines.append(deadline)
        try:
            if self.delay_s is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        n = len(samples)
        boxes = np.tile(np.float32([[[8, 8, 24, 16]]]), (n, 1, 1))
        return {"boxes": boxes, "scores": np.full((n, 1), self.score, np.float32), "labels": np.ones((n, 1), np.int32)}


def ensemble_of(settings: EnsembleSettings | None = None, tiles: TileSettings | None = TILES, **runners: Still) -> Ensemble:
    members = [Member(name, "1", (name,), runner, sample_rates_hz=(SAMPLE_RATE_HZ,)) for name, runner in runners.items()]
    return Ensemble(members, tiles, settings)


def told(answer: ChunkAnswer) -> dict[str, str]:
    return {part.model: part.status.value for part in answer.models}


class Wayward(FrontEnd):
    """A front end that takes `take_s`, or raises."""

    take_s: float = 0.0
    breaks: bool = False

    def to_uint8(self, iq: torch.Tensor) -> torch.Tensor:
        asyncio.get_running_loop().take(self.take_s)  # type: ignore[attr-defined]
        if self.breaks:
            raise MemoryError("no room for a spectrogram")
        return super().to_uint8(iq)


def wayward(**how) -> TileSettings:
    return TileSettings.model_construct(front_end=Wayward(nfft=64, hop=32, tile=SIDE, **how), chunk_s=0.01)
