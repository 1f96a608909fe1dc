"""The hash of a run: equal configs are one run, and nothing else is."""

from __future__ import annotations

import copy
import functools
import hashlib
import json

import pytest

from experiments.spec.identity import EXCLUDED_KEYS
from experiments.spec.identity import run_id as id_of
from experiments.store.records import ResolvedConfig
from yolof_d2.config import build_cfg, iter_keys


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads(json.dumps(build_cfg("configs/yolof_R_50_C5_1x.yaml")))


def change(config: dict, key: str) -> dict:
    """Return a copy of the config with another value of a key."""
    changed = copy.deepcopy(config)
    *parents, leaf = key.split(".")
    functools.reduce(dict.__getitem__, parents, changed)[leaf] = "another value"
    return changed


def run_id(config: dict, ranks: int) -> str:
    return id_of(ResolvedConfig(config), ranks)


def in_excluded(key: str) -> str | None:
    """Return the excluded key or node that contains a key."""
    return next((e for e in EXCLUDED_KEYS if f"{key}.".startswith(f"{e}.")), None)


def test_every_key_counts_but_the_excluded_ones(config):
    own = run_id(config, 8)
    same = {key for key in iter_keys(config) if run_id(change(config, key), 8) == own}
    assert same == {key for key in iter_keys(config) if in_excluded(key)}


def test_what_cannot_change_results_and_nothing_else_is_excluded(config):
    # By hand: a key that comes in here makes one run of what may be two experiments.
    cannot = {"OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "TEST.PICTURES", "VIS_PERIOD", "WANDB"}
    cannot |= {"DATALOADER.NUM_WORKERS", "SOLVER.RESUME_CHANGED"}
    assert set(EXCLUDED_KEYS) == cannot
    assert {in_excluded(key) for key in iter_keys(config)} - {None} == set(EXCLUDED_KEYS)


def test_a_config_from_before_an_excluded_node_came_up_is_the_same_run(config):
    before = copy.deepcopy(config)
    del before["WANDB"], before["TEST"]["PICTURES"]
    assert run_id(before, 8) == run_id(config, 8)


def test_ranks_count_and_the_order_of_keys_does_not(config):
    assert run_id(config, 8) != run_id(config, 1)
    turned = dict(reversed(config.items()))
    assert run_id(turned, 8) == run_id(config, 8)


def test_the_config_is_not_changed_by_hashing_it():
    config = {"SEED": 3, "SOLVER": {"CHECKPOINT_PERIOD": 9}, "TEST": {"PICTURES": 1}}
    before = copy.deepcopy(config)
    identity = run_id(config, 8)
    assert config == before
    assert len(identity) == 12 and int(identity, 16) >= 0


def test_ids_of_runs_that_exist_stay():
    # Worked out apart from the code: sha256sum of this text, the first 12 digits.
    config = {"SEED": 3, "OUTPUT_DIR": "a", "TEST": {"PICTURES": 1}}
    config["SOLVER"] = {"BASE_LR": 0.1, "CHECKPOINT_PERIOD": 9}
    text = '{"config": {"SEED": 3, "SOLVER": {"BASE_LR": 0.1}, "TEST": {}}, "ranks": 8}'
    assert run_id(config, 8) == hashlib.sha256(text.encode()).hexdigest()[:12] == "41d4d82ff079"
