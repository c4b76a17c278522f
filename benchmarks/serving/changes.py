"""What happens to a server in its life, for `load.py --changes`: a new version, a broken one, a replica's death, a new config."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from pathlib import Path

import psutil
import yaml

from longhaul.export.manifest import Description
from longhaul.export.registry import Registry


def new_version(registry: Registry, name: str) -> str:
    """Publish the files of the version that `prod` points to again, and promote them."""
    version = _again(registry, name)
    registry.promote(name, version)
    return version


def broken_model(registry: Registry, name: str) -> str:
    """The same, with a byte changed in each file right after it was promoted: the registry promotes nothing that is damaged."""
    version = _again(registry, name)
    registry.promote(name, version)
    for file in Path(registry.folder(name, version)).glob("model*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    return version


def kill_replica(server: int) -> None:
    """SIGKILL to one replica among what the server's process started."""
    for child in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "ServeReplica" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
                return
    raise RuntimeError("no replica was found")


def new_config(config: Path) -> None:
    """Two threads for each engine in place of one: every replica is replaced. `longhaul serve` reads the file again by itself."""
    content = yaml.safe_load(config.read_text())
    content["applications"][0]["args"]["threads"] = 2
    config.write_text(yaml.safe_dump(content))


def _again(registry: Registry, name: str) -> str:
    manifest = registry.resolve(name, "prod")
    description = Description(**{field: getattr(manifest, field) for field in Description.model_fields})
    with tempfile.TemporaryDirectory() as scratch:
        files = registry.fetch(manifest, Path(scratch))
        return registry.publish(description, list(files.values())).version
