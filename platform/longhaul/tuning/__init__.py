"""Choosing what a recipe leaves open: sweeps over grids and searches, cross-validation, auto-tune from the number of samples."""
