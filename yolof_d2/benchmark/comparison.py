"""Run the comparison, from config files to a record of all figures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from yolof_d2.config import build_cfg
from yolof_d2.errors import ConfigError, UserError
from yolof_d2.measure.provenance import describe_run

from .allocator import freed_memory_kept
from .contender import SEED, Contender, Options
from .cost import describe_cost
from .peak_memory import measure_memory
from .rounds import run_rounds, summarise

logger = logging.getLogger(__name__)

MIN_SIDE = 32  # pixels; the stride of C5


def choose_device(overrides: Sequence[str]) -> str:
    """Return ``MODEL.DEVICE`` of the overrides, else a GPU if there is one, else the CPU.

    Raises:
        ConfigError: another kind of device, or a GPU where PyTorch sees none.
    """
    given = dict(zip(overrides[::2], overrides[1::2], strict=False)).get("MODEL.DEVICE")
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ConfigError(
            f"MODEL.DEVICE is {device!r}, expected 'cpu' or 'cuda'; which GPU it is, "
            "CUDA_VISIBLE_DEVICES says"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("MODEL.DEVICE is 'cuda', but PyTorch sees no GPU; use MODEL.DEVICE cpu")
    return device


def run_benchmark(
    config_files: Sequence[str], overrides: Sequence[str], options: Options
) -> dict[str, Any]:
    """Measure the models of some configs side by side, and compare all with the first.

    ``overrides`` are ``KEY VALUE`` pairs for all of them, flat.

    Returns:
        A record as plain JSON, which docs/benchmark.md describes.

    Raises:
        ConfigError: a config or an option that cannot be used.
    """
    provenance = describe_run()  # before the code on disk can change
    check_options(options)
    device = choose_device(overrides)
    cfgs = _build_cfgs(config_files, overrides, device)
    models, contenders = [], []
    for (name, cfg), file in zip(cfgs.items(), config_files, strict=True):
        logger.info("%s: counting, building, measuring memory", name)
        with _naming(name, options):
            cost = describe_cost(cfg, options.size)
            contender = Contender(name, cfg, options)
            memory = measure_memory(name, cfg, options)
        contenders.append(contender)
        models.append(
            {
                "name": name,
                "config": file,
                "model": cfg.MODEL.META_ARCHITECTURE,
                "precision": cfg.SOLVER.AMP.PRECISION if cfg.SOLVER.AMP.ENABLED else "fp32",
                "candidates": contender.candidates,
                "peak_memory_mib": memory,
                **cost,
            }
        )
    # Inference first: training steps change the running statistics of the norms, and so the scores.
    with freed_memory_kept() as kept:
        for mode, batch_size in zip(
            ("inference", "training"), reversed(options.batch_size), strict=True
        ):
            rounds = {"warmup": options.warmup, "iterations": options.iterations}
            times = run_rounds(contenders, mode, **rounds)
            for model, its_times in zip(models, times, strict=True):
                model[mode] = summarise(its_times, times[0], mode, batch_size)
    return {
        "settings": {
            **asdict(options),
            "overrides": list(overrides),
            "seed": SEED,
            "device": device,
            "threads": torch.get_num_threads(),
            "freed_memory_kept": kept,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32": {
                "convolutions": torch.backends.cudnn.allow_tf32,
                "matrix_products": torch.backends.cuda.matmul.allow_tf32,
            },
        },
        "models": models,
        **provenance,
    }


def check_options(options: Options) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ConfigError: one of them is too small.
    """
    if min(options.size) < MIN_SIDE:
        raise ConfigError(
            f"--size is {' '.join(map(str, options.size))}, expected HEIGHT WIDTH of at least "
            f"{MIN_SIDE} pixels each"
        )
    least = {"--batch-size": (min(options.batch_size), 1), "--objects": (options.objects, 0)}
    least |= {"--boxes": (options.boxes, 0), "--warmup": (options.warmup, 0)}
    least |= {"--iterations": (options.iterations, 1)}
    for name, (got, smallest) in least.items():
        if got < smallest:
            raise ConfigError(f"{name} is {got}, expected {smallest} or more")


def _build_cfgs(
    config_files: Sequence[str], overrides: Sequence[str], device: str
) -> dict[str, CfgNode]:
    cfgs: dict[str, CfgNode] = {}
    for file in config_files:
        cfg = build_cfg(file, overrides)
        cfg.MODEL.DEVICE = device
        cfg.MODEL.TIMM.PRETRAINED = False
        cfg.freeze()
        name, number = Path(file).stem, 1
        while name in cfgs:
            number += 1
            name = f"{Path(file).stem} ({number})"
        cfgs[name] = cfg
    if len({cfg.CUDNN_BENCHMARK for cfg in cfgs.values()}) > 1:
        raise ConfigError(
            "the configs differ in CUDNN_BENCHMARK, which is one for all; give it with --opts "
            "CUDNN_BENCHMARK True, or False"
        )
    return cfgs


@contextmanager
def _naming(name: str, options: Options) -> Iterator[None]:
    """Name the model and its input in errors that PyTorch raises inside."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:  # of an input too large, or of a wrong shape
        message = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{name} does not run on {options.size[0]} x {options.size[1]} pixels at batch sizes "
            f"{options.batch_size}: {message}"
        ) from error
