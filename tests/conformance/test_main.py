"""The example of the guide, and the command, as a user runs them on a file of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from yolof_d2.config import build_cfg, iter_keys
from yolof_d2.conformance import SLOTS, WAIVABLE, Case, find_cases, registered_parts
from yolof_d2.conformance.__main__ import main
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import GroundTruth, build_encoder, build_matcher

ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "docs" / "plugin_example" / "my_parts.py")
GUIDE = (ROOT / "docs" / "adding_a_part.md").read_text()
OVERRIDES = ["MODEL.YOLOF.ENCODER.LARGE_KERNEL.NUM_CHANNELS", "32"]


def make_cfg(*overrides: str):
    plugin = ["PLUGINS", repr((EXAMPLE,)), "MODEL.META_ARCHITECTURE", "YOLOF"]
    return build_cfg("", [*plugin, *OVERRIDES, *overrides])


@pytest.mark.parametrize("case", find_cases(EXAMPLE, OVERRIDES), ids=str)
def test_the_example_keeps_its_contracts(case: Case):
    case.run()


def test_the_cases_of_a_plugin_are_those_of_its_parts():
    cases = find_cases(EXAMPLE, OVERRIDES)
    checks = [*SLOTS["encoder"].checks, *SLOTS["matcher"].checks]
    assert [case.check for case in cases] == checks
    parts = {"encoder/LargeKernelEncoder", "matcher/CenterDistanceMatcher"}
    assert {case.part for case in cases} == parts
    assert str(cases[0]) == "encoder/LargeKernelEncoder/is_an_encoder"


def test_the_encoder_of_the_example_sees_as_far_as_its_kernels():
    kernel_sizes = ["MODEL.YOLOF.ENCODER.LARGE_KERNEL.KERNEL_SIZES", "[3, 7]"]
    name = ["MODEL.YOLOF.ENCODER.NAME", "LargeKernelEncoder"]
    encoder = build_encoder(make_cfg(*name, *kernel_sizes), ShapeSpec(channels=4, stride=32)).eval()
    feature = torch.randn(1, 4, 21, 21, requires_grad=True)
    encoder(feature)[0, :, 10, 10].sum().backward()
    reach = feature.grad[0].abs().amax(0).nonzero()
    assert reach.amin(0).tolist() == [10 - 1 - 3] * 2
    assert reach.amax(0).tolist() == [10 + 1 + 3] * 2


def test_the_matcher_of_the_example_takes_the_nearest_anchors_and_gives_each_to_one_object():
    name = ["MODEL.YOLOF.MATCHER.NAME", "CenterDistanceMatcher"]
    topk = ["MODEL.YOLOF.MATCHER.CENTER_DISTANCE.TOPK", "2"]
    shape = ShapeSpec(channels=32, stride=32)
    matcher = build_matcher(make_cfg(*name, *topk), shape, num_anchors=1)
    left = torch.tensor([0.0, 32.0, 64.0, 96.0])
    anchors = torch.stack((left, left * 0, left + 32, left * 0 + 32), dim=1)
    # The first lies on anchor 1, a bit to the left: anchors 1 and 0. The second, a bit to the right
    # of it and twice as wide and high, wants 1 and 2, but 1 is nearer to the first.
    boxes = torch.tensor([[[31.0, 0.0, 63.0, 32.0], [20.0, -16.0, 84.0, 48.0], [0.0] * 4]])
    truth = GroundTruth(boxes, torch.tensor([[2, 1, 0]]), torch.tensor([[True, True, False]]))
    match = matcher(anchors, torch.zeros(1, 4, 80), anchors[None], truth)
    assert match.labels.tolist() == [[2, 2, 1, 80]]
    pairs = torch.stack((match.pair_anchor_idx, match.pair_gt_idx), dim=-1)[match.pair_mask]
    assert sorted(pairs.tolist()) == [[0, 0], [1, 0], [2, 1]]


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("ENCODER.NAME LargeKernelEncoder", "ENCODER.LARGE_KERNEL.KERNEL_SIZES", "[4]", "be odd"),
        ("MATCHER.NAME CenterDistanceMatcher", "MATCHER.CENTER_DISTANCE.TOPK", "0", "be 1 or more"),
    ],
)
def test_impossible_settings_of_the_example_are_refused(name, key, value, message):
    cfg = make_cfg(*f"MODEL.YOLOF.{name} MODEL.YOLOF.{key} {value}".split())
    shape = ShapeSpec(channels=4, stride=32)
    with pytest.raises(ConfigError, match=f"MODEL.YOLOF.{key} must {message}"):
        if name.startswith("ENCODER"):
            build_encoder(cfg, shape)
        else:
            build_matcher(cfg, shape, num_anchors=1)


def test_the_command_passes_the_example(capsys):
    assert main([EXAMPLE, *OVERRIDES]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    checks = len(SLOTS["encoder"].checks) + len(SLOTS["matcher"].checks)
    assert len(lines) == checks and all(line.endswith("  ok") for line in lines)
    assert lines[0] == "encoder/LargeKernelEncoder  is_an_encoder  ok"
    assert summary == f"{checks} ok, 0 FAILED, 0 skipped"


def test_the_command_fails_a_file_with_a_broken_part_from_any_folder(tmp_path):
    broken = Path(EXAMPLE).read_text().replace("size // 2", "size // 2 - 1")
    (tmp_path / "mine.py").write_text(broken)
    command = [sys.executable, "-m", "yolof_d2.conformance", "mine.py", *OVERRIDES]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert "Traceback" not in result.stdout + result.stderr
    (shape,) = [line for line in lines if "output_has_the_declared_shape" in line]
    assert shape.startswith(
        "encoder/LargeKernelEncoder  output_has_the_declared_shape  FAILED: it raised an error: "
    )
    matcher = [line for line in lines if line.startswith("matcher/CenterDistanceMatcher")]
    assert len(matcher) == len(SLOTS["matcher"].checks)
    assert all(line.endswith("  ok") for line in matcher)


def write_plugin(folder: Path, name: str, body: str) -> str:
    file = folder / "parts.py"
    file.write_text(
        "from yolof_d2.modeling import ENCODER_REGISTRY, Encoder\n"
        "from detectron2.layers import ShapeSpec\n"
        "@ENCODER_REGISTRY.register()\n"
        f"class {name}(Encoder):\n"
        "    def __init__(self, cfg, input_shape):\n"
        "        super().__init__()\n"
        "        self._output_shape = input_shape\n"
        "    def output_shape(self):\n"
        "        return self._output_shape\n"
        f"{body}"
    )
    return str(file)


@pytest.fixture
def encoders(monkeypatch):
    """Undo what plug-ins register."""
    registry = SLOTS["encoder"].registry
    monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


def test_the_command_says_which_check_failed_which_was_skipped_and_why(encoders, capsys, tmp_path):
    body = (
        "    not_promised = {'can_be_traced': 'nobody will'}\n"
        "    def forward(self, feature):\n"
        "        return feature.relu_()\n"
    )
    assert main([write_plugin(tmp_path, "InPlace", body)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert (
        "encoder/InPlace  input_is_left_alone  FAILED: in training the input was changed in place; "
        "is the first layer inplace=True?" in lines
    )
    assert "encoder/InPlace  can_be_traced  skipped: nobody will" in lines
    assert re.fullmatch(r"\d+ ok, \d+ FAILED, 1 skipped", lines[-1])


def test_the_parts_of_a_folder_are_found_in_all_its_files_and_in_no_other(encoders, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_plugin(folder, "InAFolder", "    def forward(self, feature):\n        return feature\n")
    (folder / "__init__.py").write_text("from . import parts\n")
    assert {case.part for case in find_cases(str(folder))} == {"encoder/InAFolder"}


def test_a_part_that_cannot_be_built_fails_once_not_in_every_check(encoders, capsys, tmp_path):
    body = "    def forward_(self):\n        pass\n"
    assert main([write_plugin(tmp_path, "Abstract", body)]) == 1
    first, summary = capsys.readouterr().out.splitlines()
    assert "is_an_encoder  FAILED: it could not be built: TypeError: Can't instantiate" in first
    assert summary == "0 ok, 1 FAILED, 0 skipped"


def test_one_part_and_its_settings_are_chosen_on_the_command_line(capsys):
    options = ["MODEL.YOLOF.ENCODER.DILATED.DILATIONS", "[1, 0]"]
    assert main(["--part", "encoder/DilatedEncoder", *options]) == 1
    assert "DILATIONS must be 1 or more each, got [1, 0]" in capsys.readouterr().out
    assert main(["--part", "loss/FocalBoxLoss"]) == 0
    parts = {line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert parts == {"loss/FocalBoxLoss"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "name a file with your parts, or --part SLOT/NAME, or --all"),
        (["--all", "--part", "loss/FocalBoxLoss"], 2, "not allowed with"),
        (["absent.py"], 1, "there is no file 'absent.py'"),
        (["yolof_d2.errors"], 1, "yolof_d2.errors registers no encoder, decoder, matcher, loss"),
        (["--part", "encoder/None"], 1, "there is no part 'encoder/None'; known are encoder/"),
        (["--part", "neck/FPN"], 1, "there is no part 'neck/FPN'"),
        (["--all", "MODEL.YOLOF.ENCODER.WIDTH", "1"], 1, "no such config key"),
    ],
)
def test_what_the_command_cannot_do_ends_in_one_message(words, code, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == code
    assert message in capsys.readouterr().err


def test_every_part_means_own_parts_and_of_detectron2_the_resnet():
    parts = registered_parts()
    assert "backbone/build_resnet_backbone" in parts
    assert "backbone/build_retinanet_resnet_fpn_backbone" not in parts
    assert {case.part for case in find_cases()} == set(parts)


# The guide.


def test_the_guide_names_what_there_is():
    known = set(iter_keys(make_cfg()))
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in (1, 2, 3)}
    written = set(re.findall(r"\bMODEL(?:\.[A-Z0-9_]+)+\b", GUIDE))
    assert written and written - known - nodes == set()
    paths = re.findall(r"\b(?:docs|yolof_d2|tests)/[\w/.-]*\w\.\w+", GUIDE)
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []
    for slot in SLOTS.values():
        assert slot.key in GUIDE
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)) == WAIVABLE


def test_the_test_of_the_guide_works_as_written(monkeypatch, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(Path(EXAMPLE).parent)
    namespace: dict = {}
    exec(compile(code, "adding_a_part.md", "exec"), namespace)
    (test,) = [value for name, value in namespace.items() if name.startswith("test_")]
    (mark,) = test.pytestmark
    _, cases = mark.args
    assert str(cases[0]) == "encoder/LargeKernelEncoder/is_an_encoder"
    test(cases[0])
