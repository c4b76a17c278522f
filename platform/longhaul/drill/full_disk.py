"""A folder without any space: a real one where this user may mount, so that writing ends in a real ENOSPC."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SIZE = "64k"  # room for folders and logs, none for a shard


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[str | None]:
    """A file system of 64 KiB at `folder` while the block runs; None where this user may not mount (only root may)."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "longhaul-drill", str(folder)]
    if os.geteuid() != 0 or not (mount and umount) or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield str(folder)
    finally:
        subprocess.run([umount, "--lazy", str(folder)], capture_output=True, check=False)
