"""The identity of a run.

A run is the hash of its resolved config and its number of ranks, less :data:`EXCLUDED_KEYS`. The
ranks count because batch statistics and the model's random numbers are each rank's own: the same
config on 8 ranks and on one gives other weights, of the same samples.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from experiments.store.records import ResolvedConfig

EXCLUDED_KEYS = (
    "DATALOADER.NUM_WORKERS",  # who reads the images
    "OUTPUT_DIR",  # the run folder
    "SOLVER.CHECKPOINT_PERIOD",  # how often weights are saved
    "SOLVER.RESUME_CHANGED",  # a permission
    "TEST.PICTURES",  # pictures for the log
    "VIS_PERIOD",  # the same
    "WANDB",  # where figures go
)
"""Config keys that cannot change results.

The paths of data are not among them: a change may mean other data.
"""


def run_id(config: ResolvedConfig, ranks: int) -> str:
    """Return the id of a run, 12 hexadecimal digits."""
    kept = config.root
    for key in EXCLUDED_KEYS:
        kept = _without(kept, key.split("."))
    text = json.dumps({"config": kept, "ranks": ranks}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without(config: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """Return a config without a key, which it may not have."""
    name, *rest = path
    if name not in config:
        return config
    if rest:
        return {**config, name: _without(config[name], rest)}
    return {other: value for other, value in config.items() if other != name}
