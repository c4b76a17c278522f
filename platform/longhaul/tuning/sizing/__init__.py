"""What a cell takes: operations, memory, cores and GPUs, and the micro-batch that fits."""
