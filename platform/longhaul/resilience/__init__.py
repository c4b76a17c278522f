"""What outlives a process: run directories, checkpoints, stop flags."""
