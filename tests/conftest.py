"""No test logs to Weights & Biases unless it says so."""

from __future__ import annotations

import os

os.environ["WANDB_MODE"] = "disabled"
