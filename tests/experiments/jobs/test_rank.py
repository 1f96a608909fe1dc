from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

import yolof_d2
from experiments.errors import ExperimentError
from experiments.jobs import rank
from experiments.store.records import AttemptSpan, Progress, ResolvedConfig
from yolof_d2.engine import Launch
from yolof_d2.errors import ConfigError, DataError


def attempt(folder: Path, *, code: Path | None = None, starts: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        folder=folder,
        name="1-0",
        env=SimpleNamespace(job_id="1", hostnames=["n1"], cluster="slurm"),
        submission=SimpleNamespace(code=str(code or folder)),
        progress=Progress(attempts=[AttemptSpan()] * starts),
    )


def test_a_run_does_not_mix_two_data_sets(tmp_path, monkeypatch):
    for name in ("register_datasets", "preflight"):
        monkeypatch.setattr(rank, name, lambda *_: None)
    annotations = tmp_path / "a.json"
    annotations.write_text("{}")
    MetadataCatalog.get(f"rank_{tmp_path}").json_file = str(annotations)
    cfg = CfgNode({"DATASETS": {"TRAIN": (f"rank_{tmp_path}",), "TEST": ()}})
    for starts in (1, 2):
        rank._prepare(cfg, Launch(command="c"), attempt(tmp_path, starts=starts))
    assert {path.name for path in (tmp_path / "attempts").iterdir()} == {"1.json", "2.json"}
    annotations.write_text("[]")
    with pytest.raises(DataError, match=r"annotations of rank_.*changed since this run started"):
        rank._prepare(cfg, Launch(command="c"), attempt(tmp_path, starts=3))


def test_other_code_than_the_snapshot_is_refused(tmp_path):
    rank._check_code(attempt(tmp_path, code=Path(yolof_d2.__file__).parents[1]))
    with pytest.raises(ExperimentError, match=r"expected the copy in .*PYTHONPATH"):
        rank._check_code(attempt(tmp_path, code=tmp_path / "code"))


def test_a_plugin_of_the_checkout_is_read_from_the_snapshot(tmp_path, monkeypatch):
    def restore(values):
        return CfgNode({"WANDB": {"ENABLED": False}, "OUTPUT_DIR": "", **values})

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "parts.py").touch()
    monkeypatch.setattr(rank, "restore_cfg", restore)
    plugins = ["parts.py", "/elsewhere/parts.py", "a_module"]
    run = SimpleNamespace(config=ResolvedConfig({"PLUGINS": plugins}), overrides={})
    cfg = rank._restore(run, attempt(tmp_path, code=tmp_path / "code"))
    code, *others = cfg.PLUGINS
    assert code == str(tmp_path / "code" / "parts.py") and others == plugins[1:]
    assert cfg.WANDB.ENABLED and cfg.is_frozen()


def test_where_rank_0_fails_the_others_fail_with_its_word(monkeypatch):
    monkeypatch.setattr(rank.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(rank.comm, "all_gather", lambda _: ["DataError: no boxes", ""])
    with pytest.raises(ConfigError, match=r"rank 0.*DataError: no boxes"):
        rank._on_main_rank(lambda: None)
