"""Snapshots of the code are complete, and taken once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.errors import ExperimentError
from experiments.store import snapshot
from experiments.store.snapshot import take_snapshot
from tests.experiments.records import read_json
from tests.small import commit_all, git


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    for name in ("yolof_d2/engine.py", "experiments/job.py", "configs/a.yaml", "weights.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("first")
    (folder / ".gitignore").write_text("/runs/\n")
    commit_all(folder, ".gitignore", "yolof_d2", "experiments", "configs")
    monkeypatch.setattr(snapshot, "ROOT", folder)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_tracked_files_and_new_code_are_copied_and_nothing_else(checkout, tmp_path):
    (checkout / "my_parts.py").write_text("new")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "ignored.py").write_text("")
    taken = take_snapshot(tmp_path / "code")
    tracked = {".gitignore", "yolof_d2/engine.py", "experiments/job.py", "configs/a.yaml"}
    assert files(taken) == {*tracked, "my_parts.py", "snapshot.json"}


def test_the_same_code_is_copied_once_and_edited_code_again(checkout, tmp_path):
    first = take_snapshot(tmp_path / "code")
    assert take_snapshot(tmp_path / "code") == first
    (checkout / "yolof_d2" / "engine.py").write_text("second")
    second = take_snapshot(tmp_path / "code")
    assert second != first
    assert (first / "yolof_d2" / "engine.py").read_text() == "first"
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == sorted(
        [first.name, second.name]
    )


def test_commit_and_difference_are_recorded(checkout, tmp_path):
    clean = take_snapshot(tmp_path / "code")
    record = read_json(clean / "snapshot.json")
    # weights.bin is not in git, and not copied either.
    assert (record["commit"], record["dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "parts").mkdir()
    (checkout / "parts" / "new.py").write_text("")
    assert snapshot.code_state().changed == ["?? parts/new.py"]
    (checkout / "yolof_d2" / "engine.py").write_text("second")
    dirty = take_snapshot(tmp_path / "code")
    assert "-first" in (dirty / "changes.diff").read_text()
    assert "+second" in (dirty / "changes.diff").read_text()


def test_a_copy_that_cannot_be_made_is_one_clear_line(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match=r"cannot copy the code to .*Expected a writable"):
        take_snapshot(tmp_path / "file")


def test_without_git_the_folders_of_the_package_are_copied(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "_git", lambda *_: None)
    taken = take_snapshot(tmp_path / "code")
    code = {"yolof_d2/engine.py", "experiments/job.py", "configs/a.yaml"}
    assert files(taken) == {*code, "snapshot.json"}
    record = read_json(taken / "snapshot.json")
    assert record["commit"] is None


def test_a_copy_that_is_cut_off_is_never_taken_for_a_whole_one(checkout, tmp_path, monkeypatch):
    whole = (
        files(checkout) - {"weights.bin"} - {f for f in files(checkout) if f.startswith(".git/")}
    )
    copy, copied = shutil.copy2, []

    def copy_three(source, target):
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(copy(source, target))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(snapshot.shutil, "copy2", copy_three)
        take_snapshot(tmp_path / "code")
    assert len(copied) == 3
    assert files(take_snapshot(tmp_path / "code")) == {*whole, "snapshot.json"}


def test_a_renamed_file_and_a_note_beside_the_code(checkout, tmp_path):
    first = take_snapshot(tmp_path / "code")
    (checkout / "notes.txt").write_text("no code")
    assert take_snapshot(tmp_path / "code") == first and not snapshot.code_state().dirty
    (checkout / "configs" / "a.yaml").rename(checkout / "configs" / "b.yaml")
    assert "configs/b.yaml" in files(take_snapshot(tmp_path / "code"))
