from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.small import commit_all, git
from yolof_d2.measure import provenance
from yolof_d2.measure.provenance import describe_run


def test_everything_is_json_and_complete():
    found = json.loads(json.dumps(describe_run()))
    assert {"commit", "command", "versions", "hardware"} <= found.keys()
    assert found["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert found["versions"]["torch"] and "detectron2" in found["versions"]
    assert found["hardware"]["cpu"] and found["hardware"]["cpus"] >= 1


def test_the_command_can_be_pasted_into_a_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_net.py", "MODEL.X", '["res 5"]'])
    assert describe_run()["command"].endswith("""train_net.py MODEL.X '["res 5"]'""")


def test_a_module_is_named_as_python_m_names_it(tmp_path):
    (tmp_path / "tell").mkdir()
    (tmp_path / "tell" / "__main__.py").write_text(
        "from yolof_d2.measure.provenance import describe_run; print(describe_run()['command'])"
    )
    command = [sys.executable, "-m", "tell", "a b"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip().endswith("-m tell 'a b'") and str(tmp_path) not in said.stdout


def test_the_commit_is_that_of_the_checkout_with_a_mark_when_it_has_changes(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    module = package / "provenance.py"
    module.write_text("")
    commit_all(tmp_path, ".")
    git(tmp_path, "tag", "v1")  # a tag must not take the place of the commit
    monkeypatch.setattr(provenance, "__file__", str(module))
    commit = describe_run()["commit"]
    assert len(commit) >= 12 and git(tmp_path, "rev-parse", "HEAD").startswith(commit)
    module.write_text("changed")
    assert describe_run()["commit"] == f"{commit}-dirty"


def test_the_commit_of_a_copy_is_the_one_that_its_note_names(tmp_path, monkeypatch):
    (tmp_path / "yolof_d2" / "measure").mkdir(parents=True)
    note = tmp_path / "snapshot.json"
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "yolof_d2" / "measure" / "provenance.py")
    )
    note.write_text(json.dumps({"commit": "0123456789abcdef", "dirty": True}))
    assert describe_run()["commit"] == "0123456789ab-dirty"
    note.write_text(json.dumps({"commit": None, "dirty": None}))
    assert describe_run()["commit"] is None


def test_outside_git_or_without_it_the_commit_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_run()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert describe_run()["commit"] is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package",))
    assert describe_run()["versions"]["no-such-package"] is None
