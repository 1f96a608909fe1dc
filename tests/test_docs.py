"""The commands, links, keys and figures in the documents are right."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY

from experiments.__main__ import build_parser
from yolof_d2.config import build_cfg, iter_keys
from yolof_d2.data.synthetic import write_synthetic_dataset
from yolof_d2.modeling import (
    DECODER_REGISTRY,
    ENCODER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    build_encoder,
)

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "MODEL_ZOO.md", "CHANGELOG.md"]
DOCUMENTS += [str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")]


# Commands: each is run here, or by a test named here, or marked in its page.

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|make|source|\.venv/bin/[\w-]+|\.ci/run)(?: [^`]*)?)`")
MARK = re.compile(
    r"\bneeds (a GPU|COCO|a cluster|W&B|GitHub|a git checkout|root|a quiet machine)\b"
)

# Run by test_these_commands_run_as_written, in this order, in one folder.
RUN_HERE = [
    "python -m yolof_d2.data.synthetic output/demo/data",
    "python -m yolof_d2.data.validation train.json images/",
    "python -m yolof_d2.tools.subset train.json output/train50.json 50",
    "python -m yolof_d2.conformance my_parts.py",
    "python -m yolof_d2.convert --help",
    "python -m experiments list",
    "python -m experiments plan my_sweep.yaml --cluster local",
]
# The beginning of a command, and the test that runs it. The longest beginning counts.
RUN_BY_TEST = {
    "make demo": "test_every_run_of_a_small_sweep_trains_on_the_cpu",
    "python train_net.py": "test_ap_rises_when_trained_for_real",
    "python train_net.py --config-file configs/quick/synthetic_retinanet.yaml": (
        "test_detectron2s_retinanet_trains_on_the_same_json_keys"
    ),
    "python -m yolof_d2.visualize": "test_it_draws_as_many_images_and_detections_as_asked",
    "python -m yolof_d2.evaluation": "test_of_two_runs_the_second_minus_the_first_is_shown",
    "python -m yolof_d2.tracking": "test_server_that_fails_costs_a_line_and_a_push_makes_it_good",
    "python -m yolof_d2.convert": "test_the_command_runs_and_its_standard_output_is_a_config",
    "python -m yolof_d2.benchmark": "test_the_command_leaves_record_table_and_pictures",
    "python -m yolof_d2.conformance docs/plugin_example": "test_the_command_passes_the_example",
    "python -m yolof_d2.conformance --part": (
        "test_one_part_and_its_settings_are_chosen_on_the_command_line"
    ),
    "python -m yolof_d2.conformance --all": (
        "test_every_part_means_own_parts_and_of_detectron2_the_resnet"
    ),
    "python -m yolof_d2.tools.model_zoo": (
        "test_the_file_in_the_repository_is_what_the_command_writes"
    ),
    "python -m tests.mutants.run": "test_what_becomes_of_each_fault_and_the_code_stays",
    "python -m experiments plan": "test_every_sweep_resolves_against_the_configs_here",
    "python -m experiments submit": "test_cancel_saves_and_retry_goes_on",
    "python -m experiments cancel": "test_cancel_saves_and_retry_goes_on",
    "python -m experiments logs": "test_a_crash_ends_with_its_last_line",
    "python -m experiments status": "test_these_commands_never_import_torch",
    "python -m experiments report": "test_these_commands_never_import_torch",
}
# Nothing to run: a switch of Python, and a family of commands each of which stands elsewhere.
NO_COMMAND = {"python -O", "python -m experiments"}


class Command(NamedTuple):
    """A command in a page, with the words that may mark it."""

    page: str
    words: tuple[str, ...]
    context: str

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_in(text: str, page: str = "") -> list[Command]:
    """Return the commands of unlabelled and shell fences, and those in backticks."""
    found = []
    for language, block in FENCE.findall(text):
        if language in ("", "sh", "bash", "shell", "console"):
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                if words := tuple(shlex.split(line, comments=True)):
                    found.append(Command(page, words, line))
    for line in FENCE.sub("", text).splitlines():
        found += [Command(page, tuple(shlex.split(span)), line) for span in INLINE.findall(line)]
    return [command for command in found if str(command) not in NO_COMMAND]


COMMANDS = list(
    dict.fromkeys(
        command
        for page in DOCUMENTS
        for command in commands_in((ROOT / page).read_text(), page)
        if page != "CHANGELOG.md"  # which tells of commands that were
    )
)


def who_runs(command: Command) -> str:
    """Return how a command is covered; "" if it is not."""
    beginnings = [start for start in RUN_BY_TEST if f"{command} ".startswith(f"{start} ")]
    beginnings += [start for start in RUN_BY_TEST if str(command).startswith(f"{start}/")]
    if str(command) in RUN_HERE:
        return "here"
    if command.words[0] == "make" and "demo" not in command.words:
        return "here"  # test_every_command_can_be_read, dry
    if command.words == ("source", ".venv/bin/activate"):
        return "here"
    if mark := MARK.search(command.context):
        return mark.group()
    return RUN_BY_TEST[max(beginnings, key=len)] if beginnings else ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: f"{each.page}: {each}"[:90])
def test_every_command_is_run_by_a_test_or_marked(command: Command) -> None:
    assert who_runs(command), (
        f"{command.page} has the command '{command}'. Add it to RUN_HERE, name the test that runs "
        "it in RUN_BY_TEST, or write what it needs into its line, such as '# needs a GPU'."
    )


def test_a_new_command_is_noticed() -> None:
    fence = "```\npython -m other.thing  # needs a GPU\nfrobnicate \\\n  --all\n```\n"
    commands = commands_in(f"Try `python -m new.thing`.\n\n{fence}")
    assert {str(command): who_runs(command) for command in commands} == {
        "python -m other.thing": "needs a GPU",
        "frobnicate --all": "",
        "python -m new.thing": "",
    }


def test_the_tests_that_run_commands_exist_and_every_entry_is_used() -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in RUN_BY_TEST.values() if f"def {name}(" not in tests] == []
    used = {who_runs(command) for command in COMMANDS}
    assert set(RUN_BY_TEST.values()) - used == set()
    assert set(RUN_HERE) - {str(command) for command in COMMANDS} == set()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the repository's files, data to name in commands, and the README's files."""
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("configs", "docs", "experiments", "yolof_d2", "train_net.py", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    data = write_synthetic_dataset(folder / "data", num_train=60, num_val=2, image_size=(64, 64))
    shutil.copy(data.train_json, folder / "train.json")
    (folder / "images").symlink_to(data.image_folder)
    for language, text in FENCE.findall((ROOT / "README.md").read_text()):
        if language in ("python", "yaml"):
            name = {"python": "my_parts.py", "yaml": "my_sweep.yaml"}[language]
            (folder / name).write_text(text)
    yield folder
    ENCODER_REGISTRY._obj_map.pop("OneConvEncoder", None)


@pytest.fixture
def in_the_workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


@pytest.mark.parametrize("command", [Command("", tuple(c.split()), "") for c in RUN_HERE], ids=str)
def test_these_commands_run_as_written(command, in_the_workplace, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "argv", list(command.words[2:]))
    with pytest.raises(SystemExit) as end:
        runpy.run_module(command.words[2], run_name="__main__", alter_sys=True)
    assert not end.value.code, capfd.readouterr().err
    expected = {"conformance": "0 FAILED", "plan": "6 not submitted", "list": "dilated_encoder"}
    printed = capfd.readouterr().out
    assert all(text in printed for word, text in expected.items() if word in str(command))


@pytest.mark.parametrize("command", sorted({str(each) for each in COMMANDS}))
def test_every_command_can_be_read(command: str, in_the_workplace, capfd) -> None:
    """Its file, module, options, config and keys exist, whoever runs it."""
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[:3] == ["python", "-m", "experiments"]:
        build_parser().parse_args(words[3:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
    elif words[:2] == ["python", "train_net.py"]:
        args = default_argument_parser().parse_args(words[2:])
        cfg = build_cfg(args.config_file, args.opts)
        if "OneConvEncoder" in words:
            assert type(build_encoder(cfg, ShapeSpec(channels=8, stride=16))).__name__ in words
    elif words == [".ci/run"]:
        subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)
        assert "run: " in (ROOT / ".github/workflows/ci.yml").read_text()
    else:
        assert words[0] == "source" or words[0].startswith(".venv/bin/")


# Links, keys, names and figures


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_repository_paths_lead_somewhere(name: str) -> None:
    file = ROOT / name
    text = file.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    folders = "configs|docs|experiments|yolof_d2|tests|requirements|records"
    paths = re.findall(rf"\b(?:{folders})/[\w/.-]*\w\.\w+", text)
    named = {file.parent / link.split("#")[0] for link in links} | {ROOT / path for path in paths}
    named = {path for path in named if path.name not in ("x.py", "test_x.py")}
    assert named
    assert [path for path in sorted(named) if not path.exists()] == []
    for target, _, heading in (link.partition("#") for link in links):
        if heading:
            headings = re.findall(r"^#+ (.+)$", (file.parent / target).read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in slugs, f"{name}: {target} has no heading #{heading}"


def test_the_index_lists_every_page_and_the_front_page_is_short() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages and [page for page in sorted(pages) if f"]({page})" not in index] == []
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.mark.parametrize("name", ["README.md", "MODEL_ZOO.md", "docs/training.md"])
def test_every_config_key_exists(name: str) -> None:
    known = set(iter_keys(build_cfg()))
    text = (ROOT / name).read_text()
    text = re.sub(r"```python.*?```", "", text, flags=re.DOTALL)  # a part brings keys of its own
    written = set(re.findall(r"\b((?:MODEL|SOLVER|DATASETS|INPUT|TEST)(?:\.[A-Z0-9_]+)+)\b", text))
    assert written
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in (1, 2, 3)}
    assert written - known - nodes == set()


def test_the_encoder_of_the_readme_works_as_written(in_the_workplace) -> None:
    name = ["MODEL.YOLOF.ENCODER.NAME", "OneConvEncoder"]
    cfg = build_cfg(str(ROOT / "configs/Base-YOLOF.yaml"), ["PLUGINS", "('my_parts.py',)", *name])
    encoder = build_encoder(cfg, ShapeSpec(channels=8, stride=32))
    assert encoder(torch.zeros(2, 8, 3, 5)).shape == (2, 128, 3, 5)
    assert encoder.output_shape() == ShapeSpec(channels=128, stride=32)


def test_the_readme_names_every_part_and_what_it_is_compared_with() -> None:
    text = (ROOT / "README.md").read_text()
    registries = (ENCODER_REGISTRY, DECODER_REGISTRY, MATCHER_REGISTRY, LOSS_REGISTRY)
    registries += (META_ARCH_REGISTRY,)
    own = [
        name
        for registry in registries
        for name, part in registry
        if part.__module__.startswith("yolof_d2.")
    ]
    assert len(own) > 15
    assert [name for name in own if f"`{name}`" not in text and name != "YOLOF"] == []


def test_the_benchmark_in_its_page_is_that_of_its_record() -> None:
    record = json.loads((ROOT / "records" / "benchmark" / "cpu.json").read_text())
    yolof, retinanet = record["models"]
    assert record["settings"]["size"] == [800, 1216] and not record["commit"].endswith("-dirty")
    rows = {}
    for line in (ROOT / "docs/benchmark.md").read_text().splitlines():
        if line.startswith("|") and line.count("|") == 5:
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.split(",")[0].split(" of a ")[0]] = cells

    def expect(mode: str) -> list[str]:
        ratio = retinanet[mode]["ratio_to_first"]
        seconds = [f"{model[mode]['median_seconds']:.2f} s" for model in (yolof, retinanet)]
        return [*seconds, f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"]

    def expect_amounts(amounts: list[float], form: str) -> list[str]:
        return [*(form.format(x) for x in amounts), f"{amounts[1] / amounts[0]:.2f}"]

    memory = [model["peak_memory_mib"]["training"]["process"] for model in (yolof, retinanet)]
    work = [sum(model["multiply_adds"].values()) / 1e9 for model in (yolof, retinanet)]
    size = [
        sum(sum(part.values()) for part in model["parameters"].values()) / 1e6
        for model in (yolof, retinanet)
    ]
    assert rows["training step"] == expect("training")
    assert rows["inference"] == expect("inference")
    assert rows["peak memory"] == expect_amounts(memory, "{:.0f} MiB")
    assert rows["multiply-adds"] == expect_amounts(work, "{:.1f} G")
    assert rows["parameters"] == expect_amounts(size, "{:.1f} M")
