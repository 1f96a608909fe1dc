"""Sweeps in Weights & Biases: push, workspace and report."""
