from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from tests.small import data_keys, default_cfg, leaves, write_data
from yolof_d2.config import add_yolof_config, load_plugins
from yolof_d2.config.load import (
    build_cfg,
    iter_keys,
    nearest_key,
    num_classes,
    restore_cfg,
    set_num_classes,
)
from yolof_d2.data import build_mapper, resolve_datasets
from yolof_d2.engine import Trainer
from yolof_d2.errors import ConfigError, UserError
from yolof_d2.modeling import (
    DECODER_REGISTRY,
    ENCODER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    build_decoder,
    build_encoder,
    build_loss,
    build_matcher,
)


def message(config_file: str = "", overrides: list[str] = ()) -> str:
    """What the user reads: one ConfigError."""
    with pytest.raises(ConfigError) as caught:
        build_cfg(str(config_file), overrides)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def added_keys() -> list[str]:
    return sorted(leaves(default_cfg()).keys() - leaves(get_cfg()).keys())


# What add_yolof_config does


def test_no_key_of_detectron2_is_changed_or_removed():
    before, cfg = leaves(get_cfg()), get_cfg()
    add_yolof_config(cfg)
    after = leaves(cfg)
    assert {key: after.get(key) for key in before} == before


def test_nothing_but_new_nodes_and_these_keys_are_added():
    nodes = ("MODEL.YOLOF.", "MODEL.CSPDARKNET.", "MODEL.TIMM.", "MODEL.FCOS.", "INPUT.MOSAIC.")
    nodes += ("INPUT.JITTER_CROP.", "INPUT.FIXED_SIZE.", "INPUT.COLOR_DISTORTION.")
    nodes += ("TEST.PICTURES.", "WANDB.")
    others = [key for key in added_keys() if not key.startswith(nodes)]
    assert others == [
        "DATASETS.TEST_IMAGES",
        "DATASETS.TEST_JSON",
        "DATASETS.TRAIN_IMAGES",
        "DATASETS.TRAIN_JSON",
        "INPUT.RANDOM_SHIFT.MAX_PIXELS",
        "INPUT.RANDOM_SHIFT.PROB",
        "PLUGINS",
        "SOLVER.AMP.PRECISION",
        "SOLVER.BACKBONE_LR_FACTOR",
        "SOLVER.DETERMINISTIC",
        "SOLVER.RESUME_CHANGED",
        "TEST.BEST_METRIC",
    ]


def test_iter_keys_names_every_leaf():
    assert sorted(iter_keys(build_cfg())) == sorted(leaves(build_cfg()))


class Recorder(CfgNode):
    """A config that notes the dotted name of every key that is read."""

    def __init__(self, node: dict, prefix: str, read: set[str]):
        dict.__init__(self)
        self.__dict__.update(CfgNode().__dict__, prefix=prefix, read=read)
        for key, value in node.items():
            name = f"{prefix}{key}"
            is_node = isinstance(value, dict)
            dict.__setitem__(self, key, Recorder(value, name + ".", read) if is_node else value)

    def __getattr__(self, name):
        return self[name] if name in self else super().__getattr__(name)

    def __getitem__(self, name):
        self.__dict__["read"].add(self.__dict__["prefix"] + name)
        return super().__getitem__(name)

    def clone(self):
        return self


def test_every_key_we_add_is_read_by_something(tmp_path):
    overrides = [
        *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
        *data_keys(write_data(tmp_path)),
        *("SOLVER.AMP.ENABLED", "True", "OUTPUT_DIR", str(tmp_path)),
        *("INPUT.MOSAIC.PROB", "1.0", "INPUT.COLOR_DISTORTION.PROB", "1.0"),
    ]
    read: set[str] = set()
    cfg = Recorder(build_cfg("configs/yolof_R_50_C5_1x.yaml", overrides), "", read)
    resolve_datasets(cfg)
    Trainer(cfg)
    build_mapper(cfg, is_train=False)

    # The parts that this model does not have.
    yolof, shape = cfg.MODEL.YOLOF, ShapeSpec(channels=16, stride=32)
    slots = [
        ("ENCODER", ENCODER_REGISTRY, lambda: build_encoder(cfg, shape)),
        ("DECODER", DECODER_REGISTRY, lambda: build_decoder(cfg, shape, 5)),
        ("MATCHER", MATCHER_REGISTRY, lambda: build_matcher(cfg, shape, 5)),
        ("LOSS", LOSS_REGISTRY, lambda: build_loss(cfg)),
    ]
    for slot, registry, build in slots:
        for name, part in registry:
            if part.__module__.startswith("yolof_d2."):  # else a plug-in of another test
                dict.__setitem__(yolof[slot], "NAME", name)
                build()
    for backbone in ("build_cspdarknet_backbone", "build_timm_backbone"):
        dict.__setitem__(cfg.MODEL.BACKBONE, "NAME", backbone)
        dict.__setitem__(cfg.MODEL.BACKBONE, "FREEZE_AT", 0)
        build_backbone(cfg)
    fcos = build_cfg("configs/baselines/fcos_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    build_model(Recorder(fcos, "", read))

    load_plugins(cfg.PLUGINS)  # build_cfg reads it before there is a config
    read |= {key for key in added_keys() if key.startswith("WANDB.")}  # tests/tracking
    read |= {"SOLVER.DETERMINISTIC", "SOLVER.RESUME_CHANGED"}  # tests/engine/test_resume.py
    assert set(added_keys()) - read == set()


# Keys that do not exist


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("MODEL.YOLOF.MATCHER.UNIFORM.TOPKK", "MODEL.YOLOF.MATCHER.UNIFORM.TOPK"),
        ("MODEL.YOLOF.ENCODER.SHORTCUT", "MODEL.YOLOF.ENCODER.DILATED.SHORTCUT"),
        ("SOLVER.IMS_PER_BACH", "SOLVER.IMS_PER_BATCH"),
        ("MODEL.YOLOF.DATASETS.TRAIN_JSON", "DATASETS.TRAIN_JSON"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(tmp_path, wrong, right):
    expected = f"{wrong} (did you mean {right}?)"
    said = message(overrides=[wrong, "1"])
    assert expected in said and "command line" in said and "\n" not in said

    nested: object = 1
    for name in reversed(wrong.split(".")):
        nested = {name: nested}
    file = write(tmp_path / "c.yaml", yaml.safe_dump({"VERSION": 2, **nested}))
    said = message(file)
    assert expected in said and str(file) in said and "\n" not in said


def test_several_unknown_keys_are_all_named_at_once(tmp_path):
    said = message(overrides=["BASE_LR", "1", "SOLVER.MAX_ITR", "2", "INPUT.FORMAT", "BGR"])
    assert "SOLVER.BASE_LR?" in said and "SOLVER.MAX_ITER?" in said and "FORMAT" not in said
    file = write(tmp_path / "c.yaml", "SOLVER: {BASELR: 1, MAX_ITR: 2}\nTEST: {EVALPERIOD: 3}\n")
    said = message(file)
    assert all(key in said for key in ("SOLVER.BASE_LR?", "MAX_ITER?", "TEST.EVAL_PERIOD?"))


def test_an_unknown_key_in_a_base_file_is_found(tmp_path):
    write(tmp_path / "base.yaml", "SOLVER: {BASELR: 1}\n")
    assert "SOLVER.BASE_LR" in message(write(tmp_path / "c.yaml", "_BASE_: base.yaml\n"))


def test_the_same_last_name_elsewhere_is_nearer_than_a_similar_spelling():
    assert nearest_key("A.LR", ["A.LRS", "B.LR"]) == "B.LR"
    assert nearest_key("A.LRX", ["A.LRXS", "B.OTHER"]) == "A.LRXS"


# Values and files that cannot be used


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["SOLVER.BASE_LR", "fast"], ["BASE_LR", "fast", "str", "float"]),
        (["SOLVER.MAX_ITER", "(1,)"], ["MAX_ITER", "tuple", "int"]),
        (["SOLVER", "3"], ["SOLVER"]),
        (["SOLVER.BASE_LR", "0.1", "SOLVER.MAX_ITER"], ["odd number", "SOLVER.MAX_ITER"]),
        (["SOLVER.AMP.PRECISION", "fp8"], ["SOLVER.AMP.PRECISION", "fp16", "bf16", "fp8"]),
        (["INPUT.RANDOM_SHIFT.PROB", "1.5"], ["INPUT.RANDOM_SHIFT.PROB", "[0, 1]", "1.5"]),
        (["INPUT.RANDOM_SHIFT.PROB", "-0.5"], ["INPUT.RANDOM_SHIFT.PROB", "[0, 1]", "-0.5"]),
        (["MODEL.META_ARCHITECTURE", "YOLOV"], ["META_ARCHITECTURE", "'YOLOV'", "'YOLOF'?"]),
    ],
)
def test_an_impossible_value_on_the_command_line_is_named(overrides, parts):
    said = message(overrides=overrides)
    assert all(part in said for part in parts), said
    assert "\n" not in said


@pytest.mark.parametrize(
    "text",
    [
        *("SOLVER: {BASE_LR: [1}", "- a", "just words", "", "1: 2"),  # no YAML, or no keys
        *("SOLVER: {BASE_LR: fast}", "SOLVER: 3", "SOLVER: {BASE_LR: {A: 1}}"),
        *("_BASE_: missing.yaml", "VERSION: 99", "MODEL: {YOLOF: {EXTRA: {}}}"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, text):
    file = write(tmp_path / "broken.yaml", text)
    said = message(file)
    assert str(file) in said and "\n" not in said


def test_a_missing_file_is_named_by_an_error_that_is_a_value_error_too():
    assert "'no/such.yaml'" in message("no/such.yaml")
    assert issubclass(ConfigError, UserError) and issubclass(ConfigError, ValueError)


# Keys of a model that is not built


@pytest.mark.parametrize(("key", "value"), [("NUM_CLASSES", "3"), ("NMS_THRESH_TEST", "0.3")])
@pytest.mark.parametrize("names", [("YOLOF", "RetinaNet"), ("RetinaNet", "YOLOF")])
def test_a_key_of_another_model_is_answered_with_the_models_own(names, key, value):
    right, wrong = (f"MODEL.{name.upper()}.{key}" for name in names)
    said = message(overrides=["MODEL.META_ARCHITECTURE", names[0], wrong, value])
    assert f"{wrong} (did you mean {right}?)" in said


@pytest.mark.parametrize(
    "name", ["YOLOF", "RetinaNet", "RetinaNetPlus", "FCOS", "GeneralizedRCNN", "ProposalNetwork"]
)
def test_a_saved_config_with_a_class_count_for_all_models_loads_again(tmp_path, name):
    words = ["MODEL.META_ARCHITECTURE", name, "SOLVER.STEPS", "(3, 5)", "OUTPUT_DIR", "x"]
    cfg = build_cfg(overrides=words)
    set_num_classes(cfg, 3)  # as resolve_datasets does
    nodes = ("YOLOF", "RETINANET", "FCOS", "ROI_HEADS")
    assert {cfg.MODEL[node].NUM_CLASSES for node in nodes} == {3}
    again = build_cfg(str(write(tmp_path / "config.yaml", cfg.dump())))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert num_classes(again) == 3


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path):
    write(tmp_path / "base.yaml", "SOLVER: {BASE_LR: 1.0, MAX_ITER: 1, GAMMA: 0.5}\n")
    file = write(tmp_path / "c.yaml", "_BASE_: base.yaml\nSOLVER: {BASE_LR: 2.0, MAX_ITER: 2}\n")
    cfg = build_cfg(str(file), ["SOLVER.MAX_ITER", "3"])
    assert not cfg.is_frozen()
    solver = cfg.SOLVER
    assert (solver.GAMMA, solver.BASE_LR, solver.MAX_ITER) == (0.5, 2.0, 3)


def test_a_saved_config_is_rebuilt_and_one_of_other_code_is_refused():
    values = json.loads(json.dumps(build_cfg("configs/yolof_R_50_C5_1x.yaml")))
    assert json.loads(json.dumps(restore_cfg(values))) == values
    values["MODEL"]["YOLOF"]["OLD_KEY"] = 1
    with pytest.raises(ConfigError, match=r"does not fit this version of the code.*OLD_KEY"):
        restore_cfg(values)
