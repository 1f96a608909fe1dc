"""Weights & Biases: a run there has what ``metrics.json`` has, however often it was interrupted."""

from .writer import WandbWriter

__all__ = ["WandbWriter"]
