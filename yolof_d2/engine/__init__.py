"""Training: the trainer, its hooks, checkpoints, and the check before a launch."""

from .trainer import Trainer, check_launch, setup_run

__all__ = ["Trainer", "check_launch", "setup_run"]
