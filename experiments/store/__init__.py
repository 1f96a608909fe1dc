"""Records of runs and submissions on disk, and snapshots of the code."""
