"""Choosing what a recipe leaves open: auto-tune from the number of samples, cross-validation."""
