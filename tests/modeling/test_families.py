"""Families of built-in detectors, and plug-in detectors used like built-in ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from tests.small import data_keys, read_lines, write_data
from tests.waiting import run_script
from yolof_d2.benchmark.comparison import run_benchmark
from yolof_d2.benchmark.contender import Options, make_image
from yolof_d2.benchmark.peak_memory import measure_memory
from yolof_d2.config import build_cfg, load_plugins, num_classes, set_num_classes
from yolof_d2.conformance import find_cases
from yolof_d2.errors import ConfigError
from yolof_d2.measure.model_cost import build_meta_model, count_multiply_adds
from yolof_d2.modeling.families import (
    DetectorFamily,
    FCOSFamily,
    RetinaNetFamily,
    TwoStageFamily,
    YOLOFFamily,
    collecting,
    family_of,
    family_of_model,
    foreign_nodes,
)

ROOT = Path(__file__).parents[2]
PLUGIN = str(Path(__file__).with_name("plugin_detectors.py"))
YOLOF_CONFIG = str(ROOT / "configs" / "quick" / "synthetic.yaml")
RETINANET_CONFIG = str(ROOT / "configs" / "quick" / "synthetic_retinanet.yaml")
OPTIONS = Options(size=(64, 64), batch_size=(1, 1), objects=2, boxes=5, warmup=0, iterations=1)
# Name -> a config of its family, and keys that it reads.
DETECTORS = {
    "MyYOLOF": (YOLOF_CONFIG, ["MODEL.YOLOF.TOPK_CANDIDATES_TEST", "900"]),
    "MyRetina": (RETINANET_CONFIG, ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", "900"]),
    "GridDetector": ("", ["MODEL.GRID.MIN_SCORE", "0.02"]),
    "Undeclared": ("", ["MODEL.FCOS.NORM", "BN", "MODEL.RPN.NMS_THRESH", "0.6"]),
}


@pytest.fixture(autouse=True, scope="module")
def plugin():
    """Import the plug-in, and forget it after the tests of this file."""
    before, modules = dict(META_ARCH_REGISTRY._obj_map), set(sys.modules)
    yield load_plugins([PLUGIN])[0]
    META_ARCH_REGISTRY._obj_map = before
    for name in [n for n in set(sys.modules) - modules if n.startswith("yolof_d2_plugin_")]:
        del sys.modules[name]


def make_config(folder: Path, name: str) -> str:
    """Write a config file of a detector: narrow, on the CPU, with the plug-in."""
    base, _ = DETECTORS[name]
    model = {"META_ARCHITECTURE": name, "DEVICE": "cpu"}
    if not base:
        widths = {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4}
        model["BACKBONE"] = {"NAME": "build_resnet_backbone"}
        model["RESNETS"] = {"OUT_FEATURES": ["res5"], "NORM": "BN", **widths}
    file = folder / f"{name}.yaml"
    content = {"VERSION": 2, "PLUGINS": [PLUGIN], "MODEL": model}
    file.write_text(yaml.safe_dump(content | ({"_BASE_": base} if base else {})))
    return str(file)


@pytest.mark.parametrize(
    ("name", "family", "node"),
    [
        ("YOLOF", YOLOFFamily, "YOLOF"),
        ("RetinaNet", RetinaNetFamily, "RETINANET"),
        ("RetinaNetPlus", RetinaNetFamily, "RETINANET"),
        ("FCOS", FCOSFamily, "FCOS"),
        ("GeneralizedRCNN", TwoStageFamily, "ROI_HEADS"),
        ("PanopticFPN", TwoStageFamily, "ROI_HEADS"),
        ("ProposalNetwork", TwoStageFamily, "ROI_HEADS"),
        ("SemanticSegmentor", TwoStageFamily, "ROI_HEADS"),
    ],
)
def test_every_detector_at_hand_has_a_family(name, family, node):
    found = family_of(CfgNode({"MODEL": {"META_ARCHITECTURE": name}}))
    assert type(found) is family and found.node == node
    assert foreign_nodes(found) & found.nodes == set()
    assert {"YOLOF", "RETINANET", "FCOS", "ROI_HEADS", "ROI_BOX_HEAD", "RPN"} <= (
        foreign_nodes(found) | found.nodes
    )


def test_a_subclass_inherits_its_family_and_may_declare_another(tmp_path):
    families = {}
    for name in DETECTORS:
        cfg = build_cfg(make_config(tmp_path, name), DETECTORS[name][1])
        families[name] = family_of(cfg)
        assert families[name] is family_of_model(build_model(cfg))
    assert type(families["MyYOLOF"]) is YOLOFFamily
    assert type(families["MyRetina"]) is RetinaNetFamily
    assert families["GridDetector"].node == "GRID"
    assert type(families["Undeclared"]) is DetectorFamily


def test_what_is_no_family_is_refused():
    class Wrong(nn.Module):
        detector_family = YOLOFFamily

    with pytest.raises(ConfigError, match=r"detector_family of Wrong is .*expected an instance"):
        family_of_model(Wrong())


# Keys and class counts


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [
        ("MyYOLOF", "MODEL.RETINANET.NMS_THRESH_TEST", "MODEL.YOLOF.NMS_THRESH_TEST"),
        ("MyRetina", "MODEL.YOLOF.NMS_THRESH_TEST", "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("MyYOLOF", "MODEL.GRID.MIN_SCORE", "MODEL."),
        ("GridDetector", "MODEL.YOLOF.NUM_CLASSES", "MODEL.GRID.NUM_CLASSES"),
    ],
)
def test_a_key_of_another_family_is_refused_with_the_nearest_of_its_own(
    tmp_path, name, key, nearest
):
    with pytest.raises(ConfigError) as caught:
        build_cfg(make_config(tmp_path, name), [key, "7" if key.endswith("CLASSES") else "0.3"])
    assert f"{name}, which does not read {key} (did you mean {nearest}" in str(caught.value)


def test_the_class_count_is_set_for_all_families_alike(tmp_path, caplog):
    cfg = build_cfg(make_config(tmp_path, "GridDetector"))
    set_num_classes(cfg, 5)
    nodes = ("YOLOF", "RETINANET", "FCOS", "ROI_HEADS", "GRID")
    assert [cfg.MODEL[node].NUM_CLASSES for node in nodes] == [5] * 5
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54 and num_classes(cfg) == 5
    assert not caplog.records
    saved = tmp_path / "saved.yaml"
    saved.write_text(cfg.dump())
    assert num_classes(build_cfg(str(saved))) == 5

    unknown = build_cfg(make_config(tmp_path, "Undeclared"))
    set_num_classes(unknown, 5)
    assert unknown.MODEL.RETINANET.NUM_CLASSES == 5 and num_classes(unknown) is None
    assert "Undeclared declares no family" in caplog.text and "YOLOF" in caplog.text

    without = build_cfg()  # of a process in which the plug-in has been loaded
    set_num_classes(without, 5)
    assert "GRID" not in without.MODEL
    without.MODEL.META_ARCHITECTURE = "GridDetector"
    with pytest.raises(ConfigError, match=r"reads MODEL.GRID.NUM_CLASSES.*add_config"):
        num_classes(without)


# What is not known


def test_what_a_family_does_not_answer_ends_in_one_error_that_says_how(tmp_path):
    cfg = build_cfg(make_config(tmp_path, "Undeclared"))
    model = build_meta_model(cfg)
    family = family_of_model(model)
    with family.counted_matches(model) as counted:
        assert counted == []
    for question in (
        lambda: family.find_parts(model),
        lambda: family.describe_parts(cfg, model),
        lambda: family.get_threshold(model),
        lambda: family.set_threshold(model, 0.1),
        lambda: family.candidate_scores(model),
        lambda: count_multiply_adds(model, (64, 64)),
        lambda: family.padded_size(nn.Linear(1, 1), (64, 64)),
    ):
        with pytest.raises(ConfigError, match=r"declares no family; expected .*detector_family"):
            question()
    two_stage = family_of(CfgNode({"MODEL": {"META_ARCHITECTURE": "GeneralizedRCNN"}}))
    with pytest.raises(ConfigError, match="TwoStageFamily does not define 'find_parts'"):
        two_stage.find_parts(model)


def test_collecting_leaves_methods_submodules_and_attributes_as_they_were():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            self.plain = abs

        def method(self, x, *, more=0):
            return x + more

    model = Model()
    before, found = dict(vars(model)), []
    for name, arguments, named in (("layer", (3,), {}), ("plain", (-3,), {}),
                                   ("method", (1,), {"more": 2})):  # fmt: skip
        with pytest.raises(KeyError), collecting(model, name, lambda *a, **k: [(a, k)]) as seen:
            found.append(seen)
            assert getattr(model, name)(*arguments, **named) == 3
            raise KeyError
    assert found == [[((3, 3), {})], [((3, -3), {})], [((3, 1), {"more": 2})]]
    assert vars(model) == before and model.layer(4) == 4


def test_a_matcher_that_is_a_module_is_counted_too():
    class ModuleMatcher(nn.Module):
        def __init__(self, matcher):
            super().__init__()
            self.of = matcher

        def forward(self, *arguments):
            return self.of(*arguments)

    model = build_model(build_cfg(YOLOF_CONFIG, ["MODEL.DEVICE", "cpu"])).train()
    matcher = model.__dict__.pop("matcher")
    model.matcher = ModuleMatcher(matcher)
    with family_of_model(model).counted_matches(model) as counted:
        model([make_image(OPTIONS, 3, seed=0)])
    assert len(counted) == 1 and counted[0][0] == OPTIONS.objects
    assert isinstance(model.matcher, ModuleMatcher)


# Plug-in detectors, as a user uses them


@pytest.mark.parametrize("name", DETECTORS)
def test_a_plugin_detector_trains_and_its_matches_are_measured(tmp_path, name):
    words = [
        *("--config-file", make_config(tmp_path, name), *DETECTORS[name][1]),
        *data_keys(write_data(tmp_path / "d")),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", "out"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"),
        *("DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"),
    ]
    run = run_script(ROOT / "train_net.py", *words, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-3000:]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["iterations"] == 2
    found = {key for line in read_lines(tmp_path / "out" / "metrics.json") for key in line}
    assert ("match/positives_per_gt" in found) == (name != "Undeclared")


def test_plugin_detectors_are_benchmarked_with_built_in_ones(tmp_path, monkeypatch):
    names = ["MyYOLOF", "MyRetina", "GridDetector"]

    def measure_last(name, cfg, options):  # each would take seconds to start a process
        return measure_memory(name, cfg, options) if name == names[-1] else {}

    monkeypatch.setattr("yolof_d2.benchmark.comparison.measure_memory", measure_last)
    files = [make_config(tmp_path, name) for name in names]
    record = run_benchmark(files, ["MODEL.DEVICE", "cpu"], OPTIONS)
    assert [model["model"] for model in record["models"]] == names
    for model in record["models"]:
        assert model["candidates"]["passed"] == [5]
        assert model["multiply_adds"]["backbone"] > 0 and model["multiply_adds"]["decoder"] > 0
        assert model["training"]["median_seconds"] > 0
    assert record["models"][2]["multiply_adds"]["encoder"] == 0
    assert record["models"][2]["peak_memory_mib"]["training"]["process"] > 0

    with pytest.raises(ConfigError, match=r"Undeclared cannot be told: the class declares no"):
        run_benchmark([make_config(tmp_path, "Undeclared")], ["MODEL.DEVICE", "cpu"], OPTIONS)


def test_a_detector_of_another_kind_keeps_its_contract():
    for case in find_cases(PLUGIN, part="meta_arch/GridDetector"):
        case.run()
