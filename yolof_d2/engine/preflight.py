"""The check before any launch: by ``train_net.py``, when a sweep is planned, and by each job."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

from yolof_d2.data.validation import check_datasets
from yolof_d2.errors import ConfigError
from yolof_d2.measure.model_cost import build_meta_model

from .checkpoint import checkpoints_in


@dataclass(frozen=True)
class Launch:
    """How a config is run."""

    ranks: int = 1  # processes, on all machines
    ranks_here: int = 1  # those of them on this machine, with a GPU each where there are GPUs
    eval_only: bool = False  # evaluate, do not train
    resume: bool = False  # go on from the last checkpoint in OUTPUT_DIR, if there is one
    here: bool = True  # this machine trains; else GPUs and data may be on another one
    command: str = ""  # that trains the same; empty for the one that started this process
    config_file: str = ""  # source of the config, copied into the log; may be empty


def preflight(cfg: CfgNode, launch: Launch) -> None:
    """Refuse a run that could not work, before any process starts; its data sets are registered.

    Raises:
        ConfigError: not as many GPUs as ranks, a batch that the ranks cannot share, weights that
            are not there, or a model that cannot be built.
        DataError: the data cannot be used; the message lists what is wrong.
    """
    if launch.here:
        _check_gpus(cfg, launch)
    if cfg.SOLVER.IMS_PER_BATCH % launch.ranks and not launch.eval_only:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {launch.ranks} ranks "
            "cannot share evenly; choose a multiple"
        )
    _check_weights(cfg, launch)
    _check_model(cfg)
    if launch.here:
        check_datasets(cfg, skip_train=launch.eval_only)


def _check_gpus(cfg: CfgNode, launch: Launch) -> None:
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return
    found = torch.cuda.device_count()
    if not found:
        raise ConfigError(
            "MODEL.DEVICE is 'cuda', but PyTorch sees no GPU; for the CPU: MODEL.DEVICE cpu"
        )
    if launch.ranks_here > found:
        raise ConfigError(
            f"--num-gpus is {launch.ranks_here}, but PyTorch sees {found}; ask for as many"
        )


def _check_weights(cfg: CfgNode, launch: Launch) -> None:
    resumes = launch.resume and bool(checkpoints_in(cfg.OUTPUT_DIR))
    weights = cfg.MODEL.WEIGHTS
    if launch.eval_only and not (weights or resumes):
        raise ConfigError(
            "--eval-only needs trained weights: give MODEL.WEIGHTS a file, or --resume for the "
            f"last checkpoint in OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    if weights and "://" not in weights and not resumes and not os.path.isfile(weights):
        raise ConfigError(
            f"MODEL.WEIGHTS: there is no file {weights!r} (looked from {os.getcwd()})"
        )


_buildable: set[str] = set()  # what decides whether a model can be built, of those that could


def _check_model(cfg: CfgNode) -> None:
    """Build the model without memory, once for each distinct one: a sweep asks for many."""
    key = json.dumps([cfg.MODEL, cfg.INPUT, cfg.PLUGINS])
    if key not in _buildable:
        build_meta_model(cfg)
        _buildable.add(key)
