"""The ensemble as HTTP sees it: which models, by which deadline, whether there is room, and every answer counted."""

from __future__ import annotations

import logging
from collections.abc import Collection

from torch import Tensor

from longhaul.engines.inference import only_input
from longhaul.serving.detection.answers import ChunkAnswer, Status
from longhaul.serving.detection.chunk import SignalChunk
from longhaul.serving.detection.ensemble import Ensemble
from longhaul.serving.http.metrics import Metrics
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.models.catalog import Catalog
from longhaul.serving.models.served import ServedDetector
from longhaul.serving.refusals import InvalidParameter, NoDetector, Overloaded, UnknownModel, WrongTask
from longhaul.signals.tile_folder import TileSettings

_FAILED = "it failed; the server's log has the reason"
_ROOM = 0.25
"""Of the deadline: so much before it the soonest member has answered. Without it, of three equal engines at four times their
capacity, one or another is late in nearly every answer that was begun, and the controller sheds two that are no slower."""
_log = logging.getLogger(__name__)


class Detectors:
    """What requests and streams need of the ensemble. A model may be replaced at any time: nothing of it is kept here.

    Args:
        catalog: has the ensemble.
        settings: the longest deadline.
        metrics: counts answers.
    """

    def __init__(self, catalog: Catalog, settings: ApiSettings, metrics: Metrics) -> None:
        self._catalog = catalog
        self._settings = settings
        self._metrics = metrics

    @property
    def ensemble(self) -> Ensemble:
        """The detectors.

        Raises:
            NoDetector: none is served.
        """
        if self._catalog.ensemble is None:
            raise NoDetector("no detector is served here", "GET /v1/models lists what is")
        return self._catalog.ensemble

    @property
    def tiles(self) -> TileSettings:
        """How signals become tiles.

        Raises:
            NoDetector: the detectors were trained on tiles of unknown make.
        """
        tiles = self.ensemble.tiles
        if tiles is None:
            raise NoDetector("the detectors that are served take tiles, and no signals", "Send a tile as image/png")
        return tiles

    @property
    def side(self) -> int:
        """The side of a tile in pixels."""
        detector = next(model for model in self._catalog.models() if isinstance(model, ServedDetector))
        return only_input(detector.manifest.signature).shape[-1]

    def choose(self, names: Collection[str] | None) -> frozenset[str] | None:
        """The models that are wanted; None for all.

        Raises:
            UnknownModel: one is not served.
            WrongTask: one is no detector.
            InvalidParameter: none is named.
        """
        if names is None:
            return None
        known = [member.name for member in self.ensemble.members]
        if not names:
            raise InvalidParameter("models: names none", f"Leave it out, or choose among {', '.join(known)}")
        for name in names:
            if name in known:
                continue
            if self._catalog.versions(name):
                raise WrongTask(f"model {name!r}: is no detector", f"Detectors: {', '.join(known)}")
            raise UnknownModel.among(name, known)
        return frozenset(names)

    def deadline_s(self, asked_ms: float | None) -> float:
        """Seconds for each chunk.

        Raises:
            InvalidParameter: shorter or longer than may be asked for.
        """
        if asked_ms is None:
            return self.ensemble.settings.deadline_s
        least, most = 1e3 * self._settings.least_deadline_s, 1e3 * self._settings.max_deadline_s
        if not least <= asked_ms <= most:
            raise InvalidParameter(f"deadline_ms {asked_ms:g}: cannot be", f"Ask for {least:g} to {most:g}")
        return asked_ms / 1e3

    def admit(self, deadline_s: float, models: frozenset[str] | None = None) -> None:
        """Refuse what even the soonest member would answer too late, or so close to the deadline that the others were late.

        Args:
            deadline_s: for each chunk.
            models: that are wanted; None for all.

        Raises:
            Overloaded: so it is now; says when it may be better.
        """
        room = _ROOM * min(deadline_s, self.ensemble.settings.deadline_s)
        forecast = self.ensemble.forecast_s(models)
        if forecast > deadline_s - room:
            raise Overloaded(
                f"an answer would take {forecast:.3g} s: after the deadline of {deadline_s:.3g} s, or too close to it",
                "Try again later, or with a longer deadline",
                retry_after_s=max(forecast - deadline_s, room),
            )

    async def answer(self, chunk: SignalChunk, deadline_s: float, models: frozenset[str] | None, *, road: str) -> ChunkAnswer:
        """What is in a chunk; `road` says for the metrics how it came."""
        answer = _discreet(await self.ensemble.detect(chunk, deadline_s=deadline_s, models=models))
        self._metrics.chunk(answer, road, self.tiles.front_end.pieces)
        return answer

    async def answer_tile(self, tile: Tensor, deadline_s: float, models: frozenset[str] | None) -> ChunkAnswer:
        """What is on a tile (T, T) uint8."""
        answer = _discreet(await self.ensemble.detect_tile(tile, deadline_s=deadline_s, models=models))
        self._metrics.chunk(answer, "tile", 1)
        return answer


def _discreet(answer: ChunkAnswer) -> ChunkAnswer:
    """The answer without an engine's own words, which may tell of the server's inside: they go into the log."""
    failed = [model for model in answer.models if model.status is Status.FAILED]
    if not failed:
        return answer
    for model in failed:
        _log.warning("model %s version %s failed on a chunk: %s", model.model, model.version, model.detail)
    told = tuple(model.model_copy(update={"detail": _FAILED}) if model in failed else model for model in answer.models)
    return answer.model_copy(update={"models": told})
