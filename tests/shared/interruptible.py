"""Commands that heed SIGINT, whoever starts them.

A shell starts what it puts in the background with SIGINT ignored, and children inherit that. `preexec_fn` could undo it, but it
forks this process, and gRPC in a forked driver of Ray loses its connections: the next training in it would wait for ever.
"""

from __future__ import annotations

import sys

_HEED = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"


def interruptible(*command: str) -> list[str]:
    """The command, run by an interpreter that first makes SIGINT count again."""
    return [sys.executable, "-c", _HEED, *command]
