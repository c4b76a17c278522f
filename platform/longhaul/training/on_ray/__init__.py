"""Training on a Ray cluster, by Ray Train: launching, workers, resizing, failures."""
