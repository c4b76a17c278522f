"""The driver of a drill's run: `python -m longhaul.drill.driver CLUSTER RECIPE STORAGE NAME BOARD`, a process that can be killed.

Started again with the same arguments it resumes the run. It ends when its standard input does, so that it never outlives
the drill.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

_TEMPORARY_FAILURE = 75


class Driver:
    """Starts the process, kills it, starts it again.

    Args:
        arguments: of the module, as above.
        environment: of the process.
        log: a file for what it writes.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", "longhaul.drill.driver", *arguments]
        self._environment, self._log = environment, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def ended(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def kill(self) -> None:
        """SIGKILL it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def tail(self) -> str:
        """The last line that it wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else ""


def main(address: str, recipe_file: str, storage: str, name: str, board: str) -> None:
    """Train the run on the cluster, to its end."""
    threading.Thread(target=_end_with_the_drill, daemon=True).start()
    import ray

    from longhaul.drill.dress import dress
    from longhaul.recipe import load
    from longhaul.resilience.run_directory import RunDirectory
    from longhaul.training.on_ray.launch import fit
    from longhaul.training.on_ray.ray_worker import train_worker

    logging.basicConfig(level=logging.INFO)
    # The address is for Ray Train's clean-up thread, which asks any cluster on its machine and dies where there are two.
    ray.init(address=address, runtime_env={"env_vars": {"RAY_ADDRESS": address}}, log_to_driver=True)
    recipe = load(Path(recipe_file), [])
    run = RunDirectory.prepare(storage, name, recipe)
    fit(recipe, run, partial(train_worker, dress=partial(dress, board)))


def _end_with_the_drill() -> None:
    while os.read(0, 1):  # not sys.stdin: a thread that holds its lock breaks the end of the interpreter
        pass
    os._exit(_TEMPORARY_FAILURE)


if __name__ == "__main__":
    main(*sys.argv[1:])
