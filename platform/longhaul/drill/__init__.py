"""Drills: a run on a real local cluster, disturbed on purpose, and compared with the same run left in peace."""
