"""Shadow mode: a candidate sees a share of what production has answered, and nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from longhaul.engines.inference import Array
from longhaul.serving.detection.answers import ChunkAnswer, Detection
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.members import Member
from longhaul.serving.detection.merging import emissions_of, suppress
from longhaul.serving.detection.places import Places
from longhaul.serving.detection.shadow_report import Agreement, Counts, ShadowReport, ShadowSettings, Tally, compare
from longhaul.serving.queueing.batching import DeadlinePassed

__all__ = ["Agreement", "Shadow", "ShadowReport", "ShadowSettings"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    tiles: Tensor
    production: tuple[Detection, ...]
    ensemble: EnsembleSettings


class Shadow:
    """An observer of the ensemble (`members.Observer`) that asks a candidate about the same tiles, after the answer has gone out.

    One chunk at a time, with rests in between; what comes while too many wait is dropped and counted. If production moves to
    another version, counting begins again.

    Args:
        candidate: the other version of a member, under the same name, with a runner of its own.
        settings: how much it sees, and the bounds.
        ensemble: what counts as a detection, and as the same one: as for production, whoever changes it there does so here.

    Attributes:
        candidate: as given.
        settings: as given.
        ensemble: as given.
    """

    def __init__(
        self, candidate: Member, settings: ShadowSettings | None = None, ensemble: EnsembleSettings | None = None
    ) -> None:
        self.candidate = candidate
        self.settings = settings or ShadowSettings()
        self.ensemble = ensemble or EnsembleSettings()
        self._production: str | None = None
        self._counts = Counts()
        self._due = 0.0
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def __call__(self, tiles: Tensor, found: Mapping[str, tuple[Detection, ...]], answer: ChunkAnswer) -> None:
        """Take note of an answer; on the event loop, and soon done."""
        production = found.get(self.candidate.name)
        if production is None or self._closed:
            return
        self._follow(answer)
        self._due += self.settings.share
        if self._due < 1 - 1e-9:
            return
        self._due -= 1
        if len(self._waiting) >= self.settings.queue:
            self._counts.dropped += 1
            return
        self._waiting.append(_Waiting(tiles, production, self.ensemble))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._drain())

    def report(self) -> ShadowReport:
        """What is known so far."""
        return self._counts.report(self.candidate.name, self._production, self.candidate.version, self.settings)

    def close(self) -> None:
        """Compare nothing any more; from any thread. The candidate's runner belongs to whoever made it."""
        self._closed = True
        self._waiting.clear()
        worker = self._worker
        if worker is None or worker.done():
            return
        loop = worker.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(worker.cancel)

    def _follow(self, answer: ChunkAnswer) -> None:
        version = next((one.version for one in answer.models if one.model == self.candidate.name), None)
        if version != self._production:
            self._production, self._counts = version, Counts()
            self._waiting.clear()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            begun = loop.time()
            counts, waiting = self._counts, self._waiting.popleft()
            await self._compare(waiting, counts)
            await asyncio.sleep((loop.time() - begun) * (1 / self.settings.duty - 1))

    async def _compare(self, waiting: _Waiting, counts: Counts) -> None:
        """Ask and count; into the counts of the production version that had answered."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        try:
            async with asyncio.timeout(self.settings.patience_s):
                outputs = await self.candidate.runner.infer(waiting.tiles, deadline=asked + self.settings.deadline_s)
            seconds = loop.time() - asked
            tallies = await asyncio.to_thread(self._tallies, waiting, outputs)
        except (TimeoutError, DeadlinePassed):
            counts.late += 1
            return
        except Exception as error:  # noqa: BLE001 - whatever a candidate does counts against it and harms nobody
            if not counts.failures:
                _log.warning("candidate %s of model %s failed: %s", self.candidate.version, self.candidate.name, error)
            counts.failures += 1
            return
        counts.seconds += seconds
        if seconds > self.settings.deadline_s:
            counts.late += 1
        else:
            counts.on_time += 1
        counts.chunks += 1
        for label, tally in tallies.items():
            counts.labels.setdefault(label, Tally()).add(tally)

    def _tallies(self, waiting: _Waiting, outputs: Mapping[str, Array]) -> dict[str, Tally]:
        score, iou = waiting.ensemble.score, waiting.ensemble.iou
        boxes = suppress(outputs, self.candidate.classes, score=score, iou=iou)
        found = Places().detections(emissions_of(self.candidate.name, boxes))
        return compare(waiting.production, found, iou)
