"""What a run writes about itself, for people and trackers; no number of the training depends on it."""
