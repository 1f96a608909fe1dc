"""Resolve configs in a process of its own, since importing Detectron2 imports torch.

``python -m experiments.spec.build_configs OUTPUT`` reads requests from standard input as JSON and
writes answers to ``OUTPUT``. :mod:`experiments.spec.resolve` starts it.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys

import torch
import yaml
from detectron2.config import CfgNode

from experiments.store.records import ResolvedConfig
from yolof_d2.config import build_cfg
from yolof_d2.data import resolve_datasets
from yolof_d2.data.datasets import find_data_path
from yolof_d2.engine import Launch, preflight
from yolof_d2.errors import ConfigError, UserError
from yolof_d2.modeling.families import family_of

from .resolve import ConfigAnswer, ConfigRequest

_MANY = 40  # requests that make a second process worth its start


def resolve(request: ConfigRequest) -> ConfigAnswer:
    """Resolve one config and check that it can be run."""
    try:
        cfg = build_cfg(request.config, request.overrides)
        resolve_datasets(cfg)
        try:
            preflight(cfg, Launch(ranks=request.ranks, here=False))
        except UserError:
            raise
        except Exception as error:  # builds the model; a user's part may raise anything
            why = str(error) or type(error).__name__
            raise ConfigError(f"its model cannot be built: {why}") from error
    except UserError as error:
        return ConfigAnswer(error=str(error))
    files = [*_config_files(request.config), *_plugin_files(cfg), *_data_files(cfg)]
    return ConfigAnswer(
        config=ResolvedConfig(cfg),
        model_node=family_of(cfg).node or None,
        files=dict.fromkeys(sorted(set(files)), ""),
    )


def _config_files(path: str) -> list[str]:
    """List a config file and its bases, recursively."""
    with open(path) as file:
        root = yaml.compose(file)  # not loaded: Detectron2's own files hold Python expressions
    bases: list[str] = []
    for key, value in root.value if root else []:
        if key.value == "_BASE_":
            nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
            bases = [os.path.expanduser(node.value) for node in nodes]
    folder = os.path.dirname(path)
    nested = [_config_files(base if os.path.isabs(base) else os.path.join(folder, base))
              for base in bases]  # fmt: skip
    return [os.path.abspath(path), *(file for files in nested for file in files)]


def _plugin_files(cfg: CfgNode) -> list[str]:
    found = []
    for entry in cfg.PLUGINS:
        path = os.path.expanduser(entry)
        if os.path.isdir(path):
            found += [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".py")]
        elif os.path.isfile(path):
            found.append(path)
    return [os.path.abspath(path) for path in found]


def _data_files(cfg: CfgNode) -> list[str]:
    given = {key: cfg.DATASETS[key] for key in ("TRAIN_JSON", "TEST_JSON")}
    return [find_data_path(path, key=f"DATASETS.{key}") for key, path in given.items() if path]


def main() -> None:
    """Answer the requests on standard input."""
    requests = [ConfigRequest.model_validate(each) for each in json.load(sys.stdin)]
    logging.getLogger("yolof_d2").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    workers = min(os.cpu_count() or 1, 8, len(requests) // _MANY)
    if workers > 1:
        # Requests of one model stay together, as they stand, so that it is built once.
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            answers = pool.map(resolve, requests, chunksize=-(-len(requests) // workers))
    else:
        answers = [resolve(request) for request in requests]
    with open(sys.argv[1], "w") as file:
        json.dump([answer.model_dump() for answer in answers], file)


if __name__ == "__main__":
    main()
