"""The models that a server holds: chosen from the registry by name, verified, loaded, and answering once before they count."""

from __future__ import annotations

import asyncio
import difflib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from longhaul.engines.inference import InferenceEngine
from longhaul.errors import UserError
from longhaul.export.manifest import Manifest
from longhaul.export.registry import Registry, split_reference
from longhaul.serving.batching import Batcher
from longhaul.serving.classifier import Classifier, ImageLimits, Prediction
from longhaul.serving.loading import EngineKind, make_engine
from longhaul.serving.refusals import UnknownModel

SERVED_TASKS = ("classification",)
_log = logging.getLogger(__name__)


class ServedModel:
    """One version of a model, ready to answer; its engine is warmed up here.

    Args:
        manifest: what the registry says of it.
        engine: loaded from the manifest's files.
        limits: bounds on what a client sends.

    Attributes:
        failure: why the last health check failed; empty while the model is well.
    """

    def __init__(self, manifest: Manifest, engine: InferenceEngine, limits: ImageLimits | None = None) -> None:
        self.manifest = manifest
        self.classifier = Classifier(engine, manifest.signature, limits)
        self.failure = ""
        self._batcher = Batcher(engine)
        engine.warm_up()

    @property
    def engine(self) -> InferenceEngine:
        """The engine that answers."""
        return self.classifier.engine

    async def predict(self, body: bytes, top_k: int | None = None) -> list[Prediction]:
        """`Classifier.__call__`, with decoding and inference on threads and concurrent calls in one batch.

        Raises:
            Refusal: the picture or `top_k` is not right.
            EngineFailed: the engine raised.
        """
        self.classifier.check_top_k(top_k)
        sample = await asyncio.to_thread(self.classifier.read, body)
        return self.classifier.answer(await self._batcher.infer(sample), top_k)

    async def check(self) -> None:
        """Run the engine on zeros, behind the requests that wait; `failure` says how it went.

        Raises:
            Exception: whatever the engine raised.
        """
        spec = self.manifest.signature.inputs[0]
        try:
            self.classifier.answer(await self._batcher.infer(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))))
        except Exception as error:
            self.failure = str(error)
            raise
        self.failure = ""

    def close(self) -> None:
        """End the model's thread and give back its engine."""
        self._batcher.close()
        self.engine.close()


class Catalog:
    """Served models by name; of several versions of one name, the one given first answers where none is asked for."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            self._models.setdefault(model.manifest.name, {})[model.manifest.version] = model

    def models(self) -> list[ServedModel]:
        """All of them, by name, each name's default version first."""
        return [model for name in sorted(self._models) for model in self._models[name].values()]

    def versions(self, name: str) -> list[str]:
        """The versions that are served of a name, the default one first."""
        return list(self._models.get(name, {}))

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model that answers.

        Raises:
            UnknownModel: no such name, or not in that version; names the nearest, and what there is.
        """
        versions = self._models.get(name)
        if versions is None:
            near = difflib.get_close_matches(name, self._models, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UnknownModel(f"model {name!r}: not served", f"{hint}Served: {', '.join(sorted(self._models)) or 'none'}")
        if version is None:
            return next(iter(versions.values()))
        if version not in versions:
            raise UnknownModel(f"model {name!r} version {version!r}: not served", f"Served: {', '.join(versions)}")
        return versions[version]

    @property
    def problem(self) -> str:
        """Why the server is not ready; empty while every model is loaded and well."""
        if not self._models:
            return "no model is loaded"
        return "; ".join(f"model {m.manifest.name} version {m.manifest.version}: {m.failure}" for m in self.models() if m.failure)

    async def check(self) -> None:
        """Run every engine once.

        Raises:
            Exception: what the first failing engine raised, after all have been tried.
        """
        results = await asyncio.gather(*(model.check() for model in self.models()), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def close(self) -> None:
        """Close all models."""
        for model in self.models():
            model.close()
        self._models.clear()


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


def load(registry: Registry, manifests: Sequence[Manifest], *, kind: EngineKind = "auto", threads: int = 1) -> Catalog:
    """Fetch, verify, load and warm up every model; nothing stays loaded if one of them fails.

    Args:
        registry: where the files are.
        manifests: what to load (`choose`).
        kind: which engine (`make_engine`).
        threads: CPU cores for each ONNX Runtime engine.

    Raises:
        IntegrityError: a file is missing or damaged; names it.
        UserError: a model is of a kind that cannot be served, or `kind` cannot run here.
    """
    models: list[ServedModel] = []
    try:
        for manifest in manifests:
            with tempfile.TemporaryDirectory(prefix="longhaul-serve-") as scratch:
                engine = make_engine(manifest, registry.fetch(manifest, Path(scratch)), kind, threads=threads)
            models.append(ServedModel(manifest, engine))
    except BaseException:
        for model in models:
            model.close()
        raise
    return Catalog(models)
