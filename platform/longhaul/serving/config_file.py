"""A Serve config that may be edited while it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from longhaul.errors import UserError

Config = TypeVar("Config")


class ConfigFile(Generic[Config]):
    """Notices that a config was written anew.

    Args:
        path: the file.
        load: reads and checks it.
    """

    def __init__(self, path: Path, load: Callable[[], Config]) -> None:
        self._path = path
        self._load = load
        self._seen = self._stamp()

    def renewed(self) -> Config | None:
        """The config, if the file has changed since the last call; a change that is wrong is told once.

        Raises:
            UserError: it cannot be read, or what it says is wrong.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        return self._load()

    def _stamp(self) -> tuple[int, int]:
        try:
            state = self._path.stat()
        except OSError as error:
            if not hasattr(self, "_seen"):
                raise UserError(f"config {self._path}: {error.strerror}", "Give one such as serve_configs/local.yaml") from None
            return self._seen  # between two versions of an editor there may be none
        return state.st_mtime_ns, state.st_size
