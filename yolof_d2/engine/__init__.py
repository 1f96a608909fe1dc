"""Training: the trainer, its hooks, checkpoints, and the check before a launch."""

from .preflight import Launch, preflight
from .trainer import Trainer, setup_run

__all__ = ["Launch", "Trainer", "preflight", "setup_run"]
