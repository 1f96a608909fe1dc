"""Copies of the code: a job runs the code as it was when it was submitted."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from experiments.errors import ExperimentError

from .record_files import now, write_record
from .records import CodeState

ROOT = Path(__file__).parents[2]

_FOLDERS = ("yolof_d2", "experiments", "configs")
_SUFFIXES = (".py", ".yaml", ".typed")


def take_snapshot(target: Path) -> Path:
    """Copy the code into a folder of ``target`` that is named by its content, once.

    Copied are the files that git tracks and, of the others that it does not ignore, Python and YAML
    files (a plug-in at work). Outside git: the folders of the package.

    Returns:
        The snapshot's folder; ``snapshot.json`` in it has commit and state, ``changes.diff`` what
        is not committed.

    Raises:
        ExperimentError: it cannot be written.
    """
    files = _list_files()
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"{name}\0".encode())
        digest.update((ROOT / name).read_bytes())
    folder = target / digest.hexdigest()[:12]
    if folder.is_dir():
        return folder
    state = code_state()
    try:
        target.mkdir(parents=True, exist_ok=True)
        # Under another name until all of it is there: half a snapshot must never be run.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target))
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, partial / name)
        diff = _git("diff", "HEAD")
        if diff:
            (partial / "changes.diff").write_text(diff)
        write_record(partial / "snapshot.json", state.model_copy(update={"taken": now()}))
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:  # another submit took the same one
            shutil.rmtree(partial)
            if not folder.is_dir():
                raise
    except OSError as error:
        raise ExperimentError(
            f"cannot copy the code to {target}: {error}. Expected a writable folder with space left"
        ) from error
    return folder


def python_path(folder: Path) -> str:
    """Return ``PYTHONPATH`` with a folder put first."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(folder), *([before] if before else [])])


def code_state() -> CodeState:
    """Return the commit, whether the code that is copied differs from it, and in which files."""
    commit = _git("rev-parse", "HEAD")
    lines = (_git("status", "--porcelain", "--untracked-files=all") or "").splitlines()
    changed = [line for line in lines if line[:2] != "??" or line.endswith(_SUFFIXES)]
    return CodeState(
        commit=commit.strip() if commit else None,
        dirty=bool(changed) if commit else None,
        changed=changed,
    )


def _list_files() -> list[str]:
    tracked = _git("ls-files", "-z")
    if tracked is None:
        found = [path for name in _FOLDERS for path in (ROOT / name).rglob("*")]
        names = [str(path.relative_to(ROOT)) for path in found if path.suffix in _SUFFIXES]
    else:
        others = _git("ls-files", "-z", "--others", "--exclude-standard") or ""
        names = tracked.split("\0")
        names += [name for name in others.split("\0") if name.endswith(_SUFFIXES)]
    return sorted({name for name in names if name and (ROOT / name).is_file()})


def _git(*words: str) -> str | None:
    try:
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")
