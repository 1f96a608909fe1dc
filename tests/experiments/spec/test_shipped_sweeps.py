"""The shipped sweeps resolve, match the tables of the paper, and the small ones train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from experiments.spec import resolve
from experiments.spec.resolve import ResolvedRun, resolve_runs
from experiments.spec.sweep import load_sweep, sweep_names
from tests.experiments.tiny import resolve_here
from tests.small import data_keys, write_data
from yolof_d2.config import restore_cfg
from yolof_d2.data import register_datasets, resolve_datasets
from yolof_d2.engine import Trainer

NAMES = sweep_names()
SMALL = [name if name == "demo" else f"{name}.small" for name in NAMES]


@pytest.fixture(scope="module")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ResolvedRun]]:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "_ask", resolve_here)
        return {name: resolve_runs(load_sweep(name), cache) for name in {*NAMES, *SMALL}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return data_keys(write_data(tmp_path_factory.mktemp("data"), image_size=(192, 192)))


@pytest.mark.parametrize("name", sorted({*NAMES, *SMALL}))
def test_every_sweep_resolves_against_the_configs_here(resolved, name):
    runs = resolved[name]
    assert len(runs) >= 3
    full = name in NAMES and name != "demo"
    for run in runs:
        solver = run.config["SOLVER"]
        if full:  # the published schedule on COCO
            assert (solver["IMS_PER_BATCH"], solver["MAX_ITER"]) == (64, 22_500)
            assert run.config["DATASETS"]["TRAIN"] == ["coco_2017_train"]
        else:
            assert run.config["MODEL"]["DEVICE"] == "cpu"
            assert solver["MAX_ITER"] <= 320


def test_the_baseline_is_one_run_in_every_sweep_that_has_it(resolved):
    names = [name for name in NAMES if name not in ("demo", "feature_arrangements")]
    assert len(names) > 5
    for variant in ("", ".small"):
        rows = {f"{name}{variant}": load_sweep(f"{name}{variant}").baseline for name in names}
        bases = {run.id for name in rows for run in resolved[name] if run.run.row == rows[name]}
        assert len(bases) == 1


def test_the_cells_of_table_4(resolved):
    node = {run.run.name: run.config["MODEL"]["YOLOF"] for run in resolved["dilated_encoder"]}
    cells = {(n["ENCODER"]["NAME"], n["MATCHER"]["NAME"]) for n in node.values()}
    encoders, matchers = ("DilatedEncoder", "ProjectorEncoder"), ("UniformMatcher", "MaxIoUMatcher")
    assert cells == {(encoder, matcher) for encoder in encoders for matcher in matchers}


def test_the_blocks_of_table_5a_are_as_many_as_their_name_says(resolved):
    for run in resolved["num_blocks"]:
        node = run.config["MODEL"]["YOLOF"]["ENCODER"]
        plain = node["NAME"] == "ProjectorEncoder"
        blocks = 0 if plain else len(node["DILATED"]["DILATIONS"])
        assert run.run.cells["blocks"] == str(blocks)


@pytest.mark.parametrize("name", SMALL)
def test_every_run_of_a_small_sweep_trains_on_the_cpu(resolved, data, tmp_path, name):
    for run in resolved[name]:
        cfg = restore_cfg(json.loads(json.dumps(run.config.root)))
        cfg.merge_from_list(
            [*data, "OUTPUT_DIR", str(tmp_path / run.id), "DATALOADER.NUM_WORKERS", 0]
            + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", []]
        )
        resolve_datasets(cfg)
        cfg.DATASETS.TEST = ()
        register_datasets(cfg)
        Path(cfg.OUTPUT_DIR).mkdir()
        seed_all_rng(0)
        trainer = Trainer(cfg)
        before = {k: v.clone() for k, v in trainer.model.named_parameters() if v.requires_grad}
        trainer.train()
        moved = [k for k, v in trainer.model.named_parameters() if k in before
                 and not torch.equal(v, before[k])]  # fmt: skip
        assert moved, run.run.name
