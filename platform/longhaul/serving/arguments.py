"""What a Serve config says of the application: its `args`, and its `user_config`, which changes without a restart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longhaul.errors import UserError
from longhaul.export.registry import Registry
from longhaul.serving.detection.ensemble_settings import EnsembleSettings
from longhaul.serving.detection.shadow import ShadowSettings
from longhaul.serving.http.settings import ApiSettings
from longhaul.serving.models.catalog import LoadSettings

REGISTRY_VARIABLE = "LONGHAUL_REGISTRY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_Settings = TypeVar("_Settings", bound=BaseModel)


class ServeArguments(LoadSettings):
    """`args` of the application in a Serve config; a change restarts the replicas, one after the other.

    Attributes:
        registry: a folder or `s3://bucket/prefix`. In place of a relative folder the variable LONGHAUL_REGISTRY counts, if the
            Ray node has it; else it is looked up where that node was started (not where the config lies).
        models: `name` (its `prod` alias is followed) or `name@version`; all that the registry has if left out.
        watch_s: seconds between two looks at the registry; 0 only looks when it is asked to (`POST /v1/admin/update`).
        candidates: model -> version that sees a share of the traffic; in place of the registry's alias `shadow`. A model that
            stays at a version can have one too; a name that is not served is refused.
        api: tokens, limits, roots.
    """

    registry: str = "models"
    models: tuple[str, ...] = ()
    watch_s: float = Field(5.0, ge=0)
    candidates: Mapping[str, str] = {}
    api: ApiSettings = ApiSettings()

    @classmethod
    def parse(cls, args: dict[str, Any]) -> ServeArguments:
        """Read `args` of a config.

        Raises:
            UserError: names the field.
        """
        return _validated(cls, args, "args")

    def open_registry(self) -> Registry:
        """The registry, by this process's folder and environment.

        Raises:
            UserError: an unknown scheme.
        """
        if "://" in self.registry or Path(self.registry).is_absolute():
            return Registry(self.registry)
        return Registry(os.environ.get(REGISTRY_VARIABLE) or self.registry)

    def for_host(self, host: str | None) -> ServeArguments:
        """These, for a server that listens on `host` (None: nobody knows): without tokens it is open on loopback alone.

        Raises:
            UserError: another address, and no token file.
        """
        if self.api.tokens is not None:
            return self
        if host not in LOOPBACK:
            problem = f"address {host or '(unknown)'}: others can reach it, and there is no token file"
            fix = "Make one with `longhaul token new NAME --file FILE` and name it in args.api.tokens, or listen on 127.0.0.1"
            raise UserError(problem, fix)
        return self.model_copy(update={"api": self.api.model_copy(update={"open_loopback": True})})


class LiveSettings(BaseModel):
    """`user_config` of the deployment: a change counts from the next request on.

    Attributes:
        ensemble: deadline, thresholds, worth of models, shedding.
        shadow: how candidates are compared, those that run included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: EnsembleSettings = EnsembleSettings()
    shadow: ShadowSettings = ShadowSettings()

    @classmethod
    def parse(cls, user_config: dict[str, Any]) -> LiveSettings:
        """Read `user_config` of a config.

        Raises:
            UserError: names the field.
        """
        return _validated(cls, user_config, "user_config")


def _validated(model: type[_Settings], values: dict[str, Any], where: str) -> _Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"serve config, {where}.{field}: {first['msg']}", f"Known: {', '.join(model.model_fields)}") from None
