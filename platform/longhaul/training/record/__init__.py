"""What a run writes about itself, for people and trackers."""
