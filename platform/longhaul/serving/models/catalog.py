"""The models that a server holds: chosen from the registry by name, verified, loaded, and answering once before they count."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from longhaul.errors import UserError
from longhaul.export.manifest import Manifest
from longhaul.export.registry import Registry, split_reference
from longhaul.serving.detection.ensemble import Ensemble
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.shadow import Shadow
from longhaul.serving.models.loading import EngineKind, make_engine
from longhaul.serving.refusals import UnknownModel
from longhaul.serving.models.served import (
    CHECK_S,
    DETECTION,
    SERVED_TASKS,
    Served,
    ServedClassifier,
    ServedDetector,
    check_within,
)
from longhaul.serving.models.shared_tiles import check_candidate, shared_tiles

if TYPE_CHECKING:  # it imports this file
    from longhaul.serving.models.updates import RegistryWatch

FIRST_DEVICE = "cuda:0"

_log = logging.getLogger(__name__)


class LoadSettings(BaseModel):
    """How models become engines.

    Attributes:
        engine: `auto`, `onnxruntime` or `tensorrt` (`serving.models.loading.make_engine`).
        threads: CPU cores for one call of each ONNX Runtime engine.
        devices: model -> CUDA device; those that are not named are on the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineKind = "auto"
    threads: int = Field(1, ge=1)
    devices: Mapping[str, str] = {}


class Catalog:
    """Served models by name; of several versions of one name, the one given first answers where none is asked for.

    Used on the event loop only. The detectors that answer by default form the ensemble.

    Args:
        models: loaded; closed by the catalog from here on.
        settings: of the ensemble.
        device: where tiles are made.

    Attributes:
        ensemble: None without detectors.
        refused: model -> why a newer version was not taken.
        shadows: model -> its candidate, which sees a share of the traffic.
        watch: what follows the registry, if anything does.

    Raises:
        UserError: two detectors need different tiles; names both.
    """

    def __init__(self, models: Sequence[Served], settings: EnsembleSettings | None = None, *, device: str = "cpu") -> None:
        self._settings = settings or EnsembleSettings()
        self._device = device
        self._models: dict[str, dict[str, Served]] = {}
        for model in models:
            self._models.setdefault(model.manifest.name, {})[model.manifest.version] = model
        self.refused: dict[str, str] = {}
        self.shadows: dict[str, Shadow] = {}
        self._candidates: dict[str, ServedDetector] = {}
        self.watch: RegistryWatch | None = None
        detectors = self._detectors()
        self.ensemble = make_ensemble(detectors, self._settings, device) if detectors else None

    def models(self) -> list[Served]:
        """All of them, by name, each name's default version first."""
        return [model for name in sorted(self._models) for model in self._models[name].values()]

    def versions(self, name: str) -> list[str]:
        """The versions that are served of a name, the default one first."""
        return list(self._models.get(name, {}))

    def find(self, name: str, version: str | None = None) -> Served:
        """The model that answers. Whoever holds it can use it to the end, also when another version takes its place.

        Raises:
            UnknownModel: no such name, or not in that version; names the nearest, and what there is.
        """
        versions = self._models.get(name)
        if versions is None:
            raise UnknownModel.among(name, sorted(self._models))
        if version is None:
            return next(iter(versions.values()))
        if version not in versions:
            raise UnknownModel(f"model {name!r} version {version!r}: not served", f"Served: {', '.join(versions)}")
        return versions[version]

    def adopt(self, served: Served, *, keep: bool = False) -> None:
        """Let a version answer for its name from now on; requests in flight end on the one that did before.

        Args:
            served: loaded; closed by the catalog from here on.
            keep: the version that answered before stays to be asked for by its number.

        Raises:
            UserError: a detector that needs other tiles than the rest of the ensemble, or a model of another task; nothing
                has changed then.
        """
        name, version = served.manifest.name, served.manifest.version
        before = self._models.get(name, {})
        default = next(iter(before.values()), None)
        if default is not None and type(default) is not type(served):
            task = default.manifest.signature.task
            raise UserError(f"model {name}: version {version} is not of task {task!r}", "Publish it under another name")
        if isinstance(served, ServedDetector):
            self._adopt_detector(served)
        others = {number: model for number, model in before.items() if number != version and (keep or model is not default)}
        self._models[name] = {version: served, **others}
        self.refused.pop(name, None)

    def add_shadow(self, shadow: Shadow, candidate: ServedDetector) -> None:
        """Let a candidate see a share of the live traffic.

        Args:
            shadow: compares it with production.
            candidate: loaded; closed by the catalog from here on.

        Raises:
            UserError: its name is not in the ensemble, or it needs other tiles.
        """
        name = candidate.manifest.name
        if self.ensemble is None or name not in {member.name for member in self.ensemble.members}:
            raise UserError(f"model {name}: nothing to compare its candidate with", "Serve a version of it first")
        check_candidate(candidate, self._detectors(), self.ensemble.tiles)
        self.drop_shadow(name)
        shadow.ensemble = self._settings
        self.shadows[name] = shadow
        self._candidates[name] = candidate
        self.ensemble.observers.append(shadow)

    def drop_shadow(self, name: str) -> None:
        """End a comparison; nothing happens if there is none."""
        shadow = self.shadows.pop(name, None)
        if shadow is None or self.ensemble is None:
            return
        self.ensemble.observers.remove(shadow)
        shadow.close()
        del self._candidates[name]

    def configure(self, settings: EnsembleSettings) -> None:
        """Change deadline, bounds and values from the next request on."""
        self._settings = settings
        if self.ensemble is not None:
            self.ensemble.configure(settings)
        for shadow in self.shadows.values():
            shadow.ensemble = settings

    @property
    def problem(self) -> str:
        """Why the server is not ready; empty while every classifier, and at least one detector if there are any, is well."""
        if not self._models:
            return "no model is loaded"
        return "; ".join(map(_complaint, self._failures()))

    async def check(self, within_s: float = CHECK_S) -> None:
        """Run every engine once. One detector that fails is told in its `failure`; the others still answer.

        Args:
            within_s: an engine that has not answered then has failed.

        Raises:
            RuntimeError: a classifier failed, or every detector did: then another replica answers better.
        """
        await asyncio.gather(*(check_within(model, within_s) for model in self.models()), return_exceptions=True)
        for model in self.models():
            if model.failure:
                _log.warning(_complaint(model))
        if self.problem:
            raise RuntimeError(self.problem)

    def close(self) -> None:
        """Close all models; no request may be in flight."""
        for name in list(self.shadows):
            self.drop_shadow(name)
        if self.ensemble is not None:
            self.ensemble.close()
        for model in self.models():
            model.close()
        self._models.clear()

    def _adopt_detector(self, served: ServedDetector) -> None:
        if self.ensemble is None:
            self.ensemble = make_ensemble([served], self._settings, self._device)
            return
        others = [other for other in self._detectors() if other.manifest.name != served.manifest.name]
        tiles = shared_tiles([served, *others], self.ensemble.tiles)
        self.ensemble.replace(served.member(), tiles)
        for name, candidate in list(self._candidates.items()):
            try:
                check_candidate(candidate, [served, *others], tiles)
            except UserError as error:
                _log.warning("%s; it is compared no more", error)
                self.drop_shadow(name)

    def _defaults(self) -> list[Served]:
        return [next(iter(versions.values())) for _, versions in sorted(self._models.items())]

    def _detectors(self) -> list[ServedDetector]:
        return [model for model in self._defaults() if isinstance(model, ServedDetector)]

    def _failures(self) -> list[Served]:
        """Those that make the server unready."""
        broken = [model for model in self.models() if model.failure]
        detectors = [model for model in self.models() if isinstance(model, ServedDetector)]
        if all(model.failure for model in detectors):
            return broken
        return [model for model in broken if not isinstance(model, ServedDetector)]


def make_ensemble(detectors: Sequence[ServedDetector], settings: EnsembleSettings, device: str = "cpu") -> Ensemble:
    """The ensemble of detectors that look at the same tiles.

    Args:
        detectors: at least one, by name.
        settings: deadline, thresholds, values.
        device: where tiles are made.

    Raises:
        UserError: two of them need different tiles; names both.
    """
    members = [detector.member() for detector in detectors]
    return Ensemble(members, shared_tiles(detectors), settings, device=device)


def choose(registry: Registry, wanted: Sequence[str] = ()) -> list[Manifest]:
    """What to serve: `name` (its `prod`, else its latest version) or `name@version`; all names if none are given.

    Raises:
        UserError: the registry is empty, has no such model or version, or a model's task is not served.
        IntegrityError: a manifest is damaged.
    """
    references = list(dict.fromkeys(wanted)) or registry.names()
    if not references:
        fix = "Fill it with `longhaul export RUN`, or give another registry"
        raise UserError(f"registry {registry.uri}: holds no model", fix)
    manifests = [registry.resolve(*split_reference(reference)) for reference in references]
    served = [manifest for manifest in manifests if manifest.signature.task in SERVED_TASKS]
    others = [manifest for manifest in manifests if manifest not in served]
    if others and (wanted or not served):
        problem = f"model {others[0].name}: is of task {others[0].signature.task!r}, which is not served yet"
        raise UserError(problem, f"Name models of task {' or '.join(SERVED_TASKS)}")
    for manifest in others:
        _log.warning("model %s is left out: task %s is not served yet", manifest.name, manifest.signature.task)
    return served


def load_model(registry: Registry, manifest: Manifest, settings: LoadSettings | None = None) -> Served:
    """Fetch, verify, load and warm up one model. It takes seconds: not on an event loop.

    Args:
        registry: where the files are.
        manifest: what to load.
        settings: which engine, and where.

    Raises:
        IntegrityError: a file is missing or damaged; names it.
        UserError: the model is of a kind that cannot be served, or the engine cannot run here.
        RuntimeError: the engine fails on zeros.
    """
    how = settings or LoadSettings()
    device = how.devices.get(manifest.name, FIRST_DEVICE)
    with tempfile.TemporaryDirectory(prefix="longhaul-serve-") as scratch:
        files = registry.fetch(manifest, Path(scratch))
        engine = make_engine(manifest, files, how.engine, threads=how.threads, device=device)
    try:
        if manifest.signature.task == DETECTION:
            return ServedDetector(manifest, engine)
        return ServedClassifier(manifest, engine)
    except BaseException:
        engine.close()
        raise


def load(
    registry: Registry,
    manifests: Sequence[Manifest],
    settings: LoadSettings | None = None,
    ensemble: EnsembleSettings | None = None,
) -> Catalog:
    """Fetch, verify, load and warm up every model; nothing stays loaded if one of them fails.

    Args:
        registry: where the files are.
        manifests: what to load (`choose`).
        settings: which engines, and where.
        ensemble: of the detectors.

    Raises:
        IntegrityError: a file is missing or damaged; names it.
        UserError: a model is of a kind that cannot be served, an engine cannot run here, or two detectors need different tiles.
        RuntimeError: an engine fails on zeros.
    """
    how = settings or LoadSettings()
    models: list[Served] = []
    try:
        for manifest in manifests:
            models.append(load_model(registry, manifest, how))
        return Catalog(models, ensemble, device=tiles_device(models, how))
    except BaseException:
        for model in models:
            model.close()
        raise


def tiles_device(models: Sequence[Served], settings: LoadSettings) -> str:
    """Where tiles are made: on the first detector's GPU, so that they need not travel; on the CPU where there is none."""
    on_gpu = [model for model in models if isinstance(model, ServedDetector) and model.engine.kind == "tensorrt"]
    return settings.devices.get(on_gpu[0].manifest.name, FIRST_DEVICE) if on_gpu else "cpu"


def warn_of_crowding(models: int, threads: int, cores: float) -> str:
    """What to log where the engines together want more cores than the replica has; empty where they fit.

    Args:
        models: ONNX Runtime engines that may run at the same time.
        threads: cores for one call of each.
        cores: of the replica.
    """
    if models * threads <= cores:
        return ""
    return (
        f"{models} models x {threads} threads on {cores:g} CPU cores: they wait for each other; give more cores or fewer threads"
    )


def _complaint(model: Served) -> str:
    return f"model {model.manifest.name} version {model.manifest.version}: {model.failure}"
