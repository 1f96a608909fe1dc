from __future__ import annotations

import pytest

from experiments.store.records import ResolvedConfig, RunRecord, Submission


def test_a_run_of_an_array_has_a_task_and_a_run_alone_has_none():
    assert Submission(token="t", job_id="7", runs=["a"]).task_id(0) == "7"
    assert Submission(token="t", job_id="7", runs=["a", "b"]).task_id(1) == "7_1"


def test_a_record_from_before_it_named_the_detectors_node_finds_it():
    config = {"MODEL": {"META_ARCHITECTURE": "RetinaNetPlus"}}
    assert RunRecord.model_validate({"config": config}).model_node == "RETINANET"
    assert RunRecord.model_validate({"config": config, "model_node": None}).model_node is None


def test_a_key_that_is_not_there_is_an_error_unless_asked_for_with_a_default():
    config = ResolvedConfig({"A": {"B": None}})
    assert config["A.B"] is None and config.get("A.C", 3) == 3
    with pytest.raises(KeyError):
        config["A.C"]
