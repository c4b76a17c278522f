"""Explain runs on the cluster: `ray job submit --working-dir . -- python jobs/explain.py s3://bucket/runs/NAME`.

Takes the arguments of `longhaul explain` and is the same function. Works where longhaul is installed and where it is not:
the package comes from the job's working directory, and every node gets a copy of it from there.
"""

import sys
from pathlib import Path

# In place of this script's own folder, whose scripts would shadow modules of the standard library (`profile`).
sys.path[0] = str(Path(__file__).resolve().parents[1] / "platform")

from longhaul.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.argv.insert(1, "explain")
    main()
