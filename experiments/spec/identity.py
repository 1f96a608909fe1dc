"""The identity of a run.

A run is the hash of its resolved config and its number of ranks, less :data:`EXCLUDED_KEYS`. The
ranks count because batch statistics and the model's random numbers are each rank's own: the same
config on 8 ranks and on one gives other weights, of the same samples.
"""

from __future__ import annotations

import copy
import hashlib
import json

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
    kept = dict(config.root)
    for key in EXCLUDED_KEYS:
        *parents, leaf = key.split(".")
        node = kept
        for name in parents:
            node[name] = copy.copy(node[name])
            node = node[name]
        node.pop(leaf, None)
    text = json.dumps({"config": kept, "ranks": ranks}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
