from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
from detectron2.modeling import build_model

from tests.small import ROOT, write_config
from tests.waiting import CAP
from yolof_d2.config import build_cfg, iter_keys, load_plugins
from yolof_d2.errors import ConfigError
from yolof_d2.modeling import ENCODER_REGISTRY, MATCHER_REGISTRY

PARTS = """
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn
from yolof_d2.modeling import ENCODER_REGISTRY, MATCHER_REGISTRY, Encoder
from yolof_d2.modeling.matcher import UniformMatcher


def add_config(cfg):
    cfg.MODEL.YOLOF.ENCODER.{name} = CfgNode({{"WIDTH": 8}})


@ENCODER_REGISTRY.register()
class {name}(Encoder):
    @configurable
    def __init__(self, input_shape, *, width):
        super().__init__()
        self.conv = nn.Conv2d(input_shape.channels, width, 1)
        self._shape = ShapeSpec(channels=width, stride=input_shape.stride)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {{"input_shape": input_shape, "width": cfg.MODEL.YOLOF.ENCODER.{name}.WIDTH}}

    def forward(self, feature):
        return self.conv(feature)

    def output_shape(self):
        return self._shape


@MATCHER_REGISTRY.register()
class {name}Matcher(UniformMatcher):
    pass
"""


@pytest.fixture
def write_parts(tmp_path, monkeypatch):
    """Write a plug-in; what it registers is forgotten after the test."""
    for registry in (ENCODER_REGISTRY, MATCHER_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))

    def write(name: str, file: str = "parts.py", text: str = PARTS) -> str:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name=name))
        return str(path)

    return write


def overrides(*plugins: str) -> list[str]:
    return ["PLUGINS", repr(tuple(plugins))]


def test_a_plugin_brings_its_part_and_its_keys(write_parts, tmp_path):
    file = write_parts("MineA")
    name = ["MODEL.YOLOF.ENCODER.NAME", "MineA", "MODEL.YOLOF.ENCODER.MineA.WIDTH", "12"]
    model = build_model(build_cfg(write_config(tmp_path, 1, 1), [*name, *overrides(file)]))
    assert type(model.encoder).__name__ == "MineA"
    assert model.decoder.cls_score.in_channels == 12


def test_plugins_may_be_named_in_the_config_file_and_in_a_saved_config(write_parts, tmp_path):
    file = write_parts("MineB")
    config = tmp_path / "mine.yaml"
    text = f"VERSION: 2\nPLUGINS: ['{file}']\nMODEL: {{META_ARCHITECTURE: YOLOF, YOLOF: "
    config.write_text(text + "{ENCODER: {NAME: MineB, MineB: {WIDTH: 3}}}}\n")
    cfg = build_cfg(str(config))
    assert cfg.MODEL.YOLOF.ENCODER.MineB.WIDTH == 3
    saved = tmp_path / "config.yaml"
    saved.write_text(cfg.dump())
    assert list(iter_keys(build_cfg(str(saved)))) == list(iter_keys(cfg))


def test_a_typing_error_in_a_plugins_key_is_answered_with_the_right_one(write_parts):
    file = write_parts("MineC")
    with pytest.raises(ConfigError, match=r"WIDHT \(did you mean MODEL.YOLOF.ENCODER.MineC.WIDTH"):
        build_cfg("", [*overrides(file), "MODEL.YOLOF.ENCODER.MineC.WIDHT", "1"])


def test_a_file_is_imported_once_and_two_of_one_name_do_not_clash(write_parts):
    first, second = write_parts("MineD", "a/parts.py"), write_parts("MineE", "b/parts.py")
    modules = load_plugins([first, second, first])
    assert modules[0] is modules[2] is not modules[1]
    assert modules[0].MineD.__module__ != modules[1].MineE.__module__


def test_a_folder_with_relative_imports_is_a_plugin(write_parts, tmp_path):
    write_parts("MineF", "folder/encoder.py")
    (tmp_path / "folder" / "__init__.py").write_text("from .encoder import MineF, add_config\n")
    (module,) = load_plugins([str(tmp_path / "folder")])
    assert "MineF" in ENCODER_REGISTRY
    assert pickle.loads(pickle.dumps(module.MineF)) is module.MineF


def test_an_installed_module_is_a_plugin():
    assert load_plugins(["json"]) == [json]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["no/such.py"], r"no file 'no/such.py'.*looked from"),
        (["no_such_module_at_all"], "'no_such_module_at_all' failed with ModuleNotFoundError"),
        ("parts.py", "must be a list"),
        ([3], "must be a list"),
    ],
)
def test_what_cannot_be_imported_is_said(entries, said):
    with pytest.raises(ConfigError, match=said):
        load_plugins(entries)


def test_an_error_inside_a_plugin_is_named_and_fixing_it_helps(write_parts, tmp_path):
    file = write_parts("", text="raise RuntimeError('not today')\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="RuntimeError: not today"):
            build_cfg("", overrides(file))
    write_parts("MineG")
    load_plugins([file])
    assert "MineG" in ENCODER_REGISTRY


def test_a_plugin_that_takes_a_name_in_use_is_refused(write_parts):
    with pytest.raises(ConfigError, match=r"DilatedEncoder.*already registered"):
        load_plugins([write_parts("DilatedEncoder")])


@pytest.mark.slow
def test_a_plugin_outside_the_repository_trains_by_config_keys_alone(tmp_path):
    plugin = tmp_path / "elsewhere" / "parts.py"
    plugin.parent.mkdir()
    plugin.write_text(PARTS.format(name="Mine"))
    command = [
        *(sys.executable, "-W", "ignore", str(ROOT / "train_net.py"), "--num-gpus", "2"),
        *("--dist-url", "auto", "--config-file", write_config(tmp_path, 4, 2)),
        *overrides(str(plugin)),
        *("MODEL.YOLOF.ENCODER.NAME", "Mine", "MODEL.YOLOF.MATCHER.NAME", "MineMatcher"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
        *("OUTPUT_DIR", "out"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=CAP)
    assert run.returncode == 0, run.stderr[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["iterations"] == 2 and summary["world_size"] == 2
    assert "(encoder): Mine(" in (tmp_path / "out" / "log.txt").read_text()
