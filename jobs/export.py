"""Export a run on the cluster: `ray job submit --working-dir . -- python jobs/export.py s3://bucket/runs/digits`.

Takes the arguments of `longhaul export` and is the same function; run and registry must be where every node can reach them.
"""

import sys

from longhaul.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    main()
