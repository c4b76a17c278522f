"""Following the registry: when a name's `prod` moves, the new version is loaded, verified and warmed up, and then takes over.

Serving goes on meanwhile. A version that does not load, verify or answer is refused: the one before stays, `Catalog.refused`
says why, and it is not tried again until the name moves once more. An alias `shadow` loads a candidate beside production.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longhaul.errors import IntegrityError, UserError
from longhaul.export.registry import PROD, Registry, split_reference
from longhaul.serving.models.catalog import Catalog, LoadSettings, load_model
from longhaul.serving.detection.shadow import Shadow, ShadowSettings
from longhaul.serving.models.served import CHECK_S, Served, ServedDetector, check_within

SHADOW = "shadow"
RETRY_S = 60.0
"""How long a version rests that this machine had no room for; each try downloads it again."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS})
"""Of an `OSError`: it is this machine's, and not a registry that is away."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aims:
    """What the registry wants of one name now.

    Attributes:
        served: the version to serve, or None where nobody has said: then it stays.
        candidate: the version to compare with it, or None.
    """

    served: str | None
    candidate: str | None


class RegistryWatch:
    """Keeps a catalog at what the registry says.

    Args:
        registry: looked at in a thread, never on the event loop.
        catalog: changed on the event loop that `run` or `look_now` is awaited on.
        references: `name` is followed; `name@version` stays as it is. All that is served is followed if none is given.
        load: how new versions are loaded.
        shadow: how candidates are compared.
        candidates: model -> version to compare; in place of the alias `shadow`. Also of models that stay as they are.
        every_s: seconds between two looks; 0 looks only when it is asked to.
        check_s: a new version that has not answered a check by then is refused.

    Raises:
        UserError: a candidate of a name that is not served.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        references: Sequence[str] = (),
        *,
        load: LoadSettings | None = None,
        shadow: ShadowSettings | None = None,
        candidates: Mapping[str, str] | None = None,
        every_s: float = 5.0,
        check_s: float = CHECK_S,
    ) -> None:
        check_candidates(candidates or {}, sorted(_names(catalog)))
        self._shadow = shadow or ShadowSettings()
        self._registry = registry
        self._catalog = catalog
        split = [split_reference(reference) for reference in references]
        self._names = [name for name, version in split if version is None] if split else sorted(_names(catalog))
        self._pinned = {(name, version) for name, version in split if version is not None}
        self._load = load or LoadSettings()
        self._candidates = dict(candidates or {})
        self._every_s = every_s
        self._check_s = check_s
        self._resting: dict[tuple[str, str], float] = {}
        self._refused: dict[str, str] = {}
        self._hopeless: dict[str, str] = {}
        self._reachable = True
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Look again and again until cancelled; returns at once if `every_s` is 0."""
        while self._every_s > 0:
            await asyncio.sleep(self._every_s)
            await self.look_now()

    def compare_by(self, shadow: ShadowSettings) -> None:
        """How candidates are compared from now on."""
        self._shadow = shadow
        for running in self._catalog.shadows.values():
            running.settings = shadow

    async def look_now(self) -> dict[str, str]:
        """Look once, and load and swap what has moved.

        Returns:
            Model -> the version that now answers.
        """
        async with self._looking:
            for name in dict.fromkeys([*self._names, *self._candidates]):
                await self._follow(name)
        return {name: self._catalog.find(name).manifest.version for name in sorted(_names(self._catalog))}

    async def _follow(self, name: str) -> None:
        aims = await self._aims(name)
        if aims is None:
            return
        current = self._catalog.find(name).manifest.version
        if aims.served in (None, current):
            self._refused.pop(name, None)
            self._catalog.refused.pop(name, None)
        elif aims.served != self._refused.get(name) and not self._rests(name, aims.served):
            await self._update(name, aims.served)
        shadow = self._catalog.shadows.get(name)
        compared = shadow.candidate.version if shadow else self._hopeless.get(name)
        if aims.candidate != compared and not self._rests(name, aims.candidate):
            await self._compare(name, aims.candidate)

    async def _aims(self, name: str) -> Aims | None:
        """What the registry says, or None if it cannot be asked: then all stays as it is."""
        if name not in self._names:  # it stays at the version that was asked for
            current, wanted = self._catalog.find(name).manifest.version, self._candidates.get(name)
            return Aims(None, None if wanted == current else wanted)
        try:
            aliases = await asyncio.to_thread(self._registry.aliases, name)
        except (OSError, IntegrityError) as error:
            self._tell_absence(error)
            return None
        if not self._reachable:
            _log.info("registry %s: answers again", self._registry.uri)
        self._reachable = True
        served = aliases.get(PROD)
        candidate = self._candidates.get(name) or aliases.get(SHADOW)
        return Aims(served, None if candidate == served else candidate)

    def _tell_absence(self, error: Exception) -> None:
        """Once, not at every look."""
        if self._reachable:
            uri, why = self._registry.uri, _one_line(error)
            _log.warning("registry %s: cannot be asked (%s); what is served stays until it answers again", uri, why)
        self._reachable = False

    def _rests(self, name: str, version: str | None) -> bool:
        """Whether this version was too much for this machine a moment ago."""
        return version is not None and asyncio.get_running_loop().time() < self._resting.get((name, version), 0.0)

    def _put_off(self, name: str, version: str, error: OSError) -> bool:
        """Try a version later: at the next look if the registry is away, else when this machine has had time; tells which."""
        if error.errno not in _NO_ROOM:
            self._tell_absence(error)
            return False
        self._resting[name, version] = asyncio.get_running_loop().time() + RETRY_S
        _log.error("model %s: version %s cannot be loaded here, next try in %g s: %s", name, version, RETRY_S, _one_line(error))
        return True

    async def _update(self, name: str, version: str) -> None:
        before = self._catalog.find(name).manifest.version
        try:
            served = await self._ready(name, version)
        except OSError as error:  # the registry went away, or the disk is full: the model is not to blame
            if self._put_off(name, version, error):
                self._catalog.refused[name] = f"version {version}: cannot be loaded here for now: {_one_line(error)}"
            return
        except Exception as error:  # noqa: BLE001 - a broken model may raise anything; what is served stays
            self._refuse(name, version, before, error)
            return
        try:
            self._catalog.adopt(served, keep=(name, before) in self._pinned)
        except UserError as error:
            _give_back(served)
            self._refuse(name, version, before, error)
            return
        _log.info("model %s: version %s has taken over from version %s", name, version, before)

    def _refuse(self, name: str, version: str, before: str, error: Exception) -> None:
        self._refused[name] = version
        self._catalog.refused[name] = f"version {version}: {_one_line(error)}"
        _log.error("model %s: version %s is refused, version %s stays: %s", name, version, before, _one_line(error))

    async def _compare(self, name: str, version: str | None) -> None:
        self._catalog.drop_shadow(name)
        self._hopeless.pop(name, None)
        if version is None:
            return
        try:
            served = await self._ready(name, version)
        except OSError as error:  # as above
            self._put_off(name, version, error)
            return
        except Exception as error:  # noqa: BLE001 - a broken candidate may raise anything; production goes on
            self._give_up(name, version, error)
            return
        try:
            if not isinstance(served, ServedDetector):
                raise UserError(f"model {name}: only detectors can be compared", "Delete the alias")
            self._catalog.add_shadow(Shadow(served.member(), self._shadow), served)
        except UserError as error:
            _give_back(served)
            self._give_up(name, version, error)
            return
        _log.info("model %s: candidate version %s sees a share of the traffic", name, version)

    def _give_up(self, name: str, version: str, error: Exception) -> None:
        self._hopeless[name] = version
        _log.error("model %s: candidate version %s cannot be compared: %s", name, version, _one_line(error))

    async def _ready(self, name: str, version: str) -> Served:
        """That version, loaded and verified off the event loop, and having answered once as requests will ask it."""
        served = await asyncio.to_thread(self._fetch, name, version)
        try:
            await check_within(served, self._check_s)
        except BaseException:
            _give_back(served)
            raise
        return served

    def _fetch(self, name: str, version: str) -> Served:
        return load_model(self._registry, self._registry.resolve(name, version), self._load)


def check_candidates(candidates: Mapping[str, str], served: Sequence[str]) -> None:
    """Refuse a candidate that has nothing to be compared with.

    Args:
        candidates: model -> version.
        served: names of the models that are.

    Raises:
        UserError: names the first that is not among them.
    """
    for name in candidates:
        if name not in served:
            raise UserError(f"candidates: model {name!r} is not served", f"Served: {', '.join(served) or 'none'}")


def _give_back(served: Served) -> None:
    """Close it on a thread of its own: an engine that hangs would hold the event loop."""
    threading.Thread(target=served.close, name="engine-end", daemon=True).start()


def _names(catalog: Catalog) -> set[str]:
    return {model.manifest.name for model in catalog.models()}


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
