"""Log to Weights & Biases what ``metrics.json`` has, however often the run was interrupted."""

from .writer import WandbWriter

__all__ = ["WandbWriter"]
