"""Measure the peak memory of each mode, in a process that holds one model."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from detectron2.config import CfgNode

from yolof_d2.config import load_plugins
from yolof_d2.errors import ConfigError
from yolof_d2.measure.memory import evaluation_phase, peak_memory_mib, start_measuring

from .contender import Contender, Options

_STEPS = 2  # the first training step makes the optimizer's state, the second one runs beside it


def measure_memory(name: str, cfg: CfgNode, options: Options) -> dict[str, dict[str, float]]:
    """Run a few steps of a model in a process of its own.

    Returns:
        ``before``, ``inference`` and ``training``, each with what
        :func:`~yolof_d2.measure.memory.peak_memory_mib` gives, in MiB. ``before`` is what the
        process holds before the model is built: Python and PyTorch.

    Raises:
        ConfigError: the system ended the process, usually for lack of memory.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        try:
            return pool.submit(_measure_here, name, cfg, options).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"{name}: the process that measures memory was ended by the system, usually for "
                "lack of memory; give a smaller --size or --batch-size"
            ) from error


def _measure_here(name: str, cfg: CfgNode, options: Options) -> dict[str, dict[str, float]]:
    load_plugins(cfg.PLUGINS)  # again, as this is a process of its own
    start_measuring()
    before = peak_memory_mib("train")
    contender = Contender(name, cfg, options)
    with evaluation_phase():
        for _ in range(_STEPS):
            contender.detect()
    inference = peak_memory_mib("eval")
    contender.model.train()
    start_measuring()
    for _ in range(_STEPS):
        contender.train(lambda _: None)
    return {"before": before, "inference": inference, "training": peak_memory_mib("train")}
