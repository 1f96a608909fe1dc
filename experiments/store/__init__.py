"""What is kept on disk: records of runs and submissions, and snapshots of the code."""
