"""Drawing points from a space, and ending those early that do badly."""
