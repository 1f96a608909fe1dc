"""Ablation sweeps: described as data, run on SLURM or on this machine, reported as tables.

``python -m experiments --help`` lists the commands. Planning, status and reports never
import torch: only :mod:`experiments.spec.build_configs` and the job's side of
:mod:`experiments.jobs` do, in processes of their own.
"""
