"""Who may import whom; docs/code_map.md draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "yolof_d2").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, with relative ones resolved."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def importers(files: list[Path], *modules: str) -> set[str]:
    """Folders, relative to the repository, of the files that import one of the modules."""
    return {
        file.relative_to(ROOT).parent.as_posix()
        for file in files
        if any(f"{name}.".startswith(f"{module}.") for name in imports(file) for module in modules)
    }


def test_experiments_import_the_library_and_never_the_reverse():
    assert importers(EXPERIMENTS, "yolof_d2")
    assert importers(LIBRARY, "experiments", "tests") == set()


def test_wandb_is_imported_in_tracking_alone():
    assert importers([*LIBRARY, *EXPERIMENTS], "wandb", "wandb_workspaces") == {
        "yolof_d2/tracking",
        "experiments/tracking",
    }


def test_the_config_knows_of_the_models_their_families_alone():
    files = [file for file in LIBRARY if file.parent.name == "config"]
    modeling = {name for file in files for name in imports(file) if "yolof_d2.modeling" in name}
    assert {name.split(".")[2] for name in modeling if name.count(".") > 1} == {"families"}
