"""Parts kept outside this package: imported by config, so that they register themselves."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from yolof_d2.errors import ConfigError


def load_plugins(entries: Sequence[str]) -> list[ModuleType]:
    """Import each entry of ``PLUGINS``, once per process.

    Args:
        entries: a Python file, a folder with ``__init__.py``, or the dotted name of an installed
            module. Paths are relative to the working directory.

    Raises:
        ConfigError: not a sequence of strings, nothing there, or the import fails.
    """
    if isinstance(entries, str) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigError(
            f"PLUGINS must be a list of files or modules, such as \"('my_parts.py',)\", "
            f"got {entries!r}"
        )
    return [_load(entry) for entry in entries]


def _load(entry: str) -> ModuleType:
    path = Path(entry).expanduser()
    is_path = path.suffix == ".py" or "/" in entry or path.is_dir()
    file = path / "__init__.py" if path.is_dir() else path
    if is_path and not file.is_file():
        raise ConfigError(f"PLUGINS: there is no file {str(file)!r} (looked from {Path.cwd()})")
    try:
        return _import_file(file.resolve()) if is_path else importlib.import_module(entry)
    except Exception as error:  # a file of the user's may raise anything
        raise ConfigError(
            f"PLUGINS: importing {entry!r} failed with {type(error).__name__}: {error}"
        ) from error


def _import_file(file: Path) -> ModuleType:
    # The name holds the whole path, because two plug-ins may both be called parts.py.
    stem = file.parent.name if file.name == "__init__.py" else file.stem
    name = f"yolof_d2_plugin_{stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # relative imports and pickling look it up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
