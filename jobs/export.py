"""Export a run on the cluster: `ray job submit --working-dir . -- python jobs/export.py s3://bucket/runs/digits`.

Takes the arguments of `longhaul export` and is the same function; run and registry must be where every node can reach them.
"""

import sys
from pathlib import Path

# In place of this script's own folder, whose scripts would shadow modules of the standard library (`profile`).
sys.path[0] = str(Path(__file__).resolve().parents[1] / "platform")

from longhaul.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    main()
