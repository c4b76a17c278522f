"""The order of samples, data sets on disk, and the way from a file to a tensor."""
