"""One version of a model as a server holds it: its engine, the batches before it, and how it is."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Protocol

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from longhaul.engines.inference import InferenceEngine, only_input
from longhaul.errors import IntegrityError
from longhaul.export.manifest import Manifest
from longhaul.serving.queueing.batching import Batcher, Outputs
from longhaul.serving.queueing.busy_time import BusyTime
from longhaul.serving.models.classifier import Classifier, ImageLimits, Prediction
from longhaul.serving.detection.asking import story
from longhaul.serving.detection.members import Member
from longhaul.serving.detection.merging import suppress
from longhaul.signals.tile_folder import TileSettings

CLASSIFICATION, DETECTION = "classification", "detection"
SERVED_TASKS = (CLASSIFICATION, DETECTION)
CHECK_S = 20.0
"""How long a check may take; less than `health_check_timeout_s` of a Serve config, after which Serve asks no more questions."""
_DRAWN = 0
"""Seed of the tile that checks look at."""


class Served(Protocol):
    """A model that is loaded, verified and warmed up.

    Attributes:
        failure: why the last health check failed; empty while the model is well.
    """

    failure: str

    @property
    def manifest(self) -> Manifest: ...

    @property
    def engine(self) -> InferenceEngine: ...

    @property
    def busy(self) -> BusyTime: ...

    async def check(self) -> None:
        """Run the engine once, behind the requests that wait; `failure` says how it went.

        Raises:
            Exception: whatever the engine raised.
        """
        ...

    def close(self) -> None:
        """End the model's thread and give back its engine, though somebody may still hold the model."""
        ...


async def check_within(model: Served, seconds: float) -> None:
    """`model.check()`; an engine that hangs has failed, and keeps nobody else waiting.

    Raises:
        RuntimeError: it has not answered by then; `failure` says so.
        Exception: as `Served.check`.
    """
    try:
        async with asyncio.timeout(seconds):
            await model.check()
    except TimeoutError:
        model.failure = f"no answer to a check within {seconds:g} s"
        raise RuntimeError(model.failure) from None


class Runner:
    """A model's batches, for as long as somebody holds them: when the last request lets go of it, the engine is given back.

    So a version that was taken out of service ends by itself, after its last request and not before, whoever holds it.

    Args:
        engine: warmed up here.

    Attributes:
        busy: how much of the time requests are in it.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        engine.warm_up()
        batcher = Batcher(engine)
        self._batcher = batcher
        self.busy = BusyTime()
        self._end = weakref.finalize(self, _end_elsewhere, batcher, engine)
        self._end.atexit = False  # the process gives everything back by itself

    @property
    def seconds_per_sample(self) -> float:
        """What one sample costs; learned."""
        return self._batcher.seconds_per_sample

    def expected_s(self, samples: int) -> float:
        """When an answer to so many samples may be expected, in seconds from now."""
        return self._batcher.expected_s(samples)

    async def infer(self, samples: Tensor, *, deadline: float | None = None) -> Outputs:
        """See `Batcher.infer`."""
        with self.busy.at_work():
            return await self._batcher.infer(samples, deadline=deadline)

    def close(self, engine: InferenceEngine) -> None:
        """Give the engine back now."""
        if self._end.detach() is not None:
            _end(self._batcher, engine)


class ServedClassifier:
    """A classification model.

    Args:
        manifest: what the registry says of it.
        engine: loaded from the manifest's files; warmed up here.
        limits: bounds on what a client sends.

    Raises:
        IntegrityError: the signature contradicts itself.
    """

    def __init__(self, manifest: Manifest, engine: InferenceEngine, limits: ImageLimits | None = None) -> None:
        self.manifest = manifest
        self.classifier = Classifier(engine, manifest.signature, limits)
        self.failure = ""
        self._runner = Runner(engine)

    @property
    def engine(self) -> InferenceEngine:
        """The engine that answers."""
        return self.classifier.engine

    @property
    def busy(self) -> BusyTime:
        """How much of the time requests are in it."""
        return self._runner.busy

    async def predict(self, body: bytes, top_k: int | None = None) -> list[Prediction]:
        """`Classifier.__call__`, with decoding and inference on threads and concurrent calls in one batch.

        Raises:
            Refusal: the picture or `top_k` is not right.
            EngineFailed: the engine raised.
        """
        self.classifier.check_top_k(top_k)
        sample = await asyncio.to_thread(self.classifier.read, body)
        return self.classifier.answer(_only(await self._runner.infer(sample[None], deadline=None)), top_k)

    async def check(self) -> None:
        """See `Served.check`."""
        try:
            self.classifier.answer(_only(await self._runner.infer(_zeros(self.manifest), deadline=None)))
        except Exception as error:
            self.failure = story(error)
            raise
        self.failure = ""

    def close(self) -> None:
        """See `Served.close`."""
        self._runner.close(self.engine)


class ServedDetector:
    """A detector; it answers as a member of the ensemble.

    Args:
        manifest: what the registry says of it.
        engine: loaded from the manifest's files; warmed up here.

    Attributes:
        tiles: how the tiles are made that it was trained on; None where it was trained on pictures of unknown make.

    Raises:
        IntegrityError: the signature contradicts itself.
    """

    def __init__(self, manifest: Manifest, engine: InferenceEngine) -> None:
        self.manifest = manifest
        self.engine = engine
        self.failure = ""
        self.tiles, rates = _tiles(manifest)
        shape = only_input(manifest.signature).shape
        self._noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(_DRAWN))
        self._runner = Runner(engine)
        self._member = Member(
            name=manifest.name,
            version=manifest.version,
            classes=manifest.signature.classes,
            runner=self._runner,
            sample_rates_hz=rates,
        )

    @property
    def busy(self) -> BusyTime:
        """How much of the time requests are in it."""
        return self._runner.busy

    def member(self) -> Member:
        """Its place in an ensemble; the same object each time."""
        return self._member

    async def check(self) -> None:
        """See `Served.check`; on noise, since on an empty tile a detector that is wrong may say nothing."""
        try:
            outputs = await self._runner.infer(self._noise, deadline=None)
            if not all(np.isfinite(values).all() for values in outputs.values()):
                raise RuntimeError("the model answered with a number that is not finite")
            suppress(outputs, self.manifest.signature.classes, score=0.0, iou=0.5)  # as an answer will, down to the last box
        except Exception as error:
            self.failure = story(error)
            raise
        self.failure = ""

    def close(self) -> None:
        """See `Served.close`."""
        self._runner.close(self.engine)


def _tiles(manifest: Manifest) -> tuple[TileSettings | None, tuple[float, ...]]:
    """The settings of the tiles that a detector was trained on, and the sample rates of their recordings."""
    made = manifest.signature.preprocess.get("tiles")
    if made is None:
        return None, ()
    settings = {name: value for name, value in made.items() if name != "sample_rates_hz"}
    label = f"model {manifest.name} version {manifest.version}"
    try:
        tiles = TileSettings.model_validate(settings)
    except ValidationError as error:
        raise IntegrityError(f"{label}: the signature's tiles cannot be made here ({error.errors()[0]['msg']})") from error
    side = tiles.front_end.tile
    shape = only_input(manifest.signature).shape
    if shape != (1, side, side):
        raise IntegrityError(f"{label}: its input is {shape}, but its tiles have {side} x {side} pixels")
    return tiles, tuple(map(float, made.get("sample_rates_hz", ())))


def _zeros(manifest: Manifest) -> Tensor:
    spec = only_input(manifest.signature)
    return torch.zeros((1, *spec.shape), dtype=getattr(torch, spec.dtype))


def _only(outputs: Outputs) -> Outputs:
    """The one sample of a batch of one."""
    return {name: values[0] for name, values in outputs.items()}


def _end(batcher: Batcher, engine: InferenceEngine) -> None:
    batcher.close()
    engine.close()


def _end_elsewhere(batcher: Batcher, engine: InferenceEngine) -> None:
    """On a thread of its own: whoever lets go last may be the event loop, and closing waits for the batch that runs."""
    threading.Thread(target=_end, args=(batcher, engine), name="engine-end", daemon=True).start()
