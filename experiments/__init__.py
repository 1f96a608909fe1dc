"""Ablation sweeps: described as data, run on SLURM or on this machine, reported as tables.

``python -m experiments --help`` lists the commands. Nothing here imports torch at import time:
only :mod:`experiments.resolver` and :mod:`experiments.worker` do, in processes of their own.
"""
