"""Who may import whom, as docs/code_map.md draws it; and where the tests of a module are."""

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


# Modules without a test file of their own name, and what tests them.
TESTED_ELSEWHERE = {
    "experiments/command_times.py": "prints times, asserts nothing",
    "experiments/errors.py": "names alone",
    "experiments/jobs/backends/debug.py": "backends/test_contract, test_submit",
    "experiments/jobs/train_job.py": "test_submit, test_slurm_sweeps",
    "experiments/report/outcomes.py": "test_fairness, test_tables",
    "experiments/spec/build_configs.py": "test_resolve, in its own process",
    "experiments/spec/source.py": "files refused in test_sweep, test_cluster",
    "experiments/tracking/wandb_identity.py": "test_push",
    "yolof_d2/benchmark/peak_memory.py": "test_comparison",
    "yolof_d2/benchmark/parts.py": "test_comparison, test_cost",
    "yolof_d2/benchmark/stopwatch.py": "test_comparison",
    "yolof_d2/command.py": "the commands' own tests",
    "yolof_d2/config/defaults.py": "test_load",
    "yolof_d2/conformance/expectations.py": "a test file for each slot",
    "yolof_d2/conformance/modules.py": "a test file for each slot",
    "yolof_d2/conformance/scenes.py": "a test file for each slot",
    "yolof_d2/errors.py": "names alone",
    "yolof_d2/modeling/losses/build.py": "test_registry",
    "yolof_d2/modeling/matcher/common.py": "the tests of each matcher",
    "yolof_d2/tracking/__main__.py": "test_writer",
    "yolof_d2/tracking/push.py": "test_writer, experiments/tracking/test_push",
    "yolof_d2/tracking/wandb_run.py": "test_writer",
}


def test_each_module_has_a_test_file_of_its_name():
    without = set()
    for module in [*LIBRARY, *EXPERIMENTS]:
        path = module.relative_to(ROOT)
        room = path.parent.relative_to("yolof_d2") if path.parts[0] == "yolof_d2" else path.parent
        test = ROOT / "tests" / room / f"test_{module.stem.strip('_')}.py"
        if module.stem != "__init__" and not test.exists():
            without.add(path.as_posix())
    assert without == TESTED_ELSEWHERE.keys()


def test_one_file_name_has_one_meaning():
    # A slot has a file of its name in each room that speaks of it, and a registry its builder.
    slots = {"backbone", "decoder", "encoder", "loss", "matcher", "meta_arch"}
    shared = {"__init__", "__main__", "build", "errors", "push", "statistics"} | slots
    names = [module.stem for module in [*LIBRARY, *EXPERIMENTS] if module.stem not in shared]
    assert sorted(names) == sorted(set(names))
