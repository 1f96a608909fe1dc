"""Where jobs run: SLURM, this machine, or this process."""
