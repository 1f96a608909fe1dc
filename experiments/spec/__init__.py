"""Sweep and cluster files, the configs they resolve to, and the ids of runs."""
