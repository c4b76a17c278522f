"""A folder without any space: a real one where this user may mount, so that writing ends in a real ENOSPC."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_SIZE = 64 << 10


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[str | None]:
    """A file system of 64 KiB at `folder`, all of it taken, while the block runs; None where this user may not mount one."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder.mkdir()
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "longhaul-drill", str(folder)]
    if os.geteuid() != 0 or not (mount and umount) or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        with contextlib.suppress(OSError), (folder / "taken").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield str(folder)
    finally:
        subprocess.run([umount, "--lazy", str(folder)], capture_output=True, check=False)
