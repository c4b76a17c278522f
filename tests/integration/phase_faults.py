"""A rank that dies in the second phase; pickled by value into the workers, which cannot import the tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def killed_on_the_whole_data(size: int, calls: int, marker: str, workload: Any, ranks: Any, run: Any) -> Any:
    """Rank 1 ends by SIGKILL in its `calls`-th loss of a phase on `size` samples; once, as `marker` remembers."""
    seen, loss = 0, workload.loss

    def counted(model: Any, batch: Any) -> Any:
        nonlocal seen
        seen += 1
        if ranks.rank == 1 and seen == calls and len(workload.splits.train) == size and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    workload.loss = counted
    return workload
