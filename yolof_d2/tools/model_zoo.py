"""Write MODEL_ZOO.md from the configs and the records of finished runs.

python -m yolof_d2.tools.model_zoo [--configs DIR] [--records DIR] [--output FILE] [--check]

A record is the ``summary.json`` of a run, copied to the folder of records.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from yolof_d2.config import build_cfg
from yolof_d2.errors import ConfigError, UserError
from yolof_d2.files import write_text
from yolof_d2.modeling import build_model

INTRODUCTION = """\
# Model zoo

Written by `python -m yolof_d2.tools.model_zoo` from `configs/` and `records/`; not to be edited.

**Nothing here has been trained on full COCO, and nothing on a GPU.** "Published" is what the named
source reports for its own code; "ours" is a run with a record, or "not trained".

## Models

Parameters are in millions, those of frozen layers and norms included. GMAC are 10^9 multiply-adds
of convolutions, linear layers and attention, at the stated input (height x width), without
post-processing.
"""

RECORDS = """\
## Runs

AP is COCO's, in percent, from pycocotools, with the weights of the last iteration. `s/iter` is the
median; `minutes` is training alone, without evaluation; `MiB` is the highest resident memory of the
main process. Each record is the `summary.json` that the run wrote, with command, versions and
machine. Other load on the machine makes `s/iter` and `minutes` larger: part of the runs shared it
with tests. The configs say what data they need.
"""


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, with the scale and shift of frozen batch norms, which are buffers."""
    # By what they hold and not by their class: Detectron2, torchvision and timm have one each.
    buffers = [dict(layer.named_buffers(recurse=False)) for layer in module.modules()]
    frozen = [held for held in buffers if {"weight", "bias", "running_var"} <= held.keys()]
    norms = sum(held["weight"].numel() + held["bias"].numel() for held in frozen)
    return sum(parameter.numel() for parameter in module.parameters()) + norms


def build_meta_model(cfg: CfgNode) -> Any:
    """Build the model of ``cfg``, a module without memory for its weights, in eval mode."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.TIMM.PRETRAINED = False
    with torch.device("meta"):
        return build_model(cfg).eval()


def input_size(cfg: CfgNode, model: Any) -> tuple[int, int]:
    """Height and width in pixels of the largest test image, padded as the backbone wants it."""
    size = cfg.INPUT.FIXED_SIZE.TEST or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    step = max(model.backbone.size_divisibility, 1)
    height, width = (-(-side // step) * step for side in size)
    return height, width


def count_multiply_adds(model: Any, size: tuple[int, int]) -> int:
    """Multiply-adds of the dense part (backbone to predictions) for one image.

    Args:
        model: on the meta device, from :func:`build_meta_model`: a YOLOF or a dense detector of
            Detectron2.
        size: height and width in pixels.
    """
    image = torch.zeros(1, 3, *size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if hasattr(model, "predict"):
            model.predict(image)
        else:
            features = model.backbone(image)
            model.head([features[name] for name in model.head_in_features])
    return counter.get_total_flops() // 2  # PyTorch counts a multiply-add as two


def published(config_file: Path) -> str:
    """What a config's header says after ``Published:``.

    Raises:
        ConfigError: the header has no such line.
    """
    found = re.search(r"^# Published: +(.+)$", config_file.read_text(), re.MULTILINE)
    if found is None:
        raise ConfigError(
            f"{config_file}: expected a header line '# Published:  37.7 AP ... (source)', or "
            "'# Published:  none'"
        )
    return found.group(1)


def read_records(folder: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """Records by the config file that their command names.

    Raises:
        UserError: a file is no record of a run of ``train_net.py``.
    """
    records: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text())
            (config,) = re.findall(r"--config-file[ =](\S+)", record["command"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: expected the summary.json of a run started with --config-file, got "
                f"{type(error).__name__}: {error}"
            ) from error
        records.setdefault(config, []).append((file, record))
    return records


def _describe_backbone(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    if "cspdarknet" in name:
        return f"CSPDarkNet-53{'-DC5' if cfg.MODEL.CSPDARKNET.RES5_DILATION == 2 else ''}"
    if "timm" in name:
        return f"timm {cfg.MODEL.TIMM.NAME}"
    node = cfg.MODEL.RESNETS
    kind = "ResNet" if node.NUM_GROUPS == 1 else "ResNeXt"
    groups = "" if node.NUM_GROUPS == 1 else f"-{node.NUM_GROUPS}x{node.WIDTH_PER_GROUP}d"
    dilated = "-DC5" if node.RES5_DILATION == 2 else ""
    narrow = "" if (64 if node.DEPTH < 50 else 256) == node.RES2_OUT_CHANNELS else ", narrow"
    return f"{kind}-{node.DEPTH}{groups}{dilated}{narrow}"


def _describe_parts(cfg: CfgNode, model: Any) -> dict[str, str]:
    if hasattr(model, "predict"):
        node = cfg.MODEL.YOLOF
        encoder, decoder, matcher = node.ENCODER.NAME, node.DECODER.NAME, node.MATCHER.NAME
        box_loss = node.LOSS.FOCAL_BOX.BBOX_REG_LOSS_TYPE
    else:
        encoder = cfg.MODEL.BACKBONE.NAME.removesuffix("_backbone").rsplit("_", 1)[-1].upper()
        decoder = type(model.head).__name__
        matcher = "MaxIoU" if hasattr(model, "anchor_matcher") else "center sampling"
        box_loss = getattr(model, "box_reg_loss_type", "giou")  # FCOS has no choice
    parts = {"encoder": encoder, "decoder": decoder, "matcher": matcher, "box loss": box_loss}
    return {slot: name.removesuffix(slot.capitalize()) for slot, name in parts.items()}


def _is_model(file: Path) -> bool:
    """Whether a config is to be run by itself; the others are only named by ``_BASE_``."""
    return not file.name.startswith("Base-") and file.parent.name != "fragments"


def _model_rows(
    configs: Path, records: dict[str, list[tuple[Path, dict[str, Any]]]]
) -> Iterator[dict[str, str]]:
    files = [file for file in configs.rglob("*.yaml") if _is_model(file)]
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        cfg = build_cfg(str(file))
        model = build_meta_model(cfg)
        size = input_size(cfg, model)
        runs = [
            f"[{record['results']['bbox']['AP']:.1f}]({path})"
            for path, record in records.get(str(file), [])
        ]
        yield {
            "config": f"[{file.stem}]({file})",
            "model": cfg.MODEL.META_ARCHITECTURE,
            "backbone": _describe_backbone(cfg),
            **_describe_parts(cfg, model),
            "parameters": f"{count_parameters(model) / 1e6:.2f}",
            "GMAC": f"{count_multiply_adds(model, size) / 1e9:.1f}",
            "input": f"{size[0]} x {size[1]}",
            "published": published(file),
            "ours": ", ".join(runs) or "not trained",
        }


def _record_row(config: str, path: Path, record: dict[str, Any]) -> dict[str, str]:
    scores = record["results"]["bbox"]
    per_class = {name[3:]: ap for name, ap in scores.items() if name.startswith("AP-")}
    row = {
        "config": f"[{Path(config).stem}]({config})",
        **{name: f"{scores[name]:.1f}" for name in ("AP", "AP50", "AP75")},
        "per class": ", ".join(f"{name} {ap:.1f}" for name, ap in per_class.items())
        if len(per_class) <= 3
        else "in the record",
        "iterations": str(record["iterations"]),
        "s/iter": f"{record['median_seconds_per_iteration']:.2f}",
        "minutes": f"{record['training_minutes']:.1f}",
        "MiB": f"{record['peak_memory_mib']['process']:.0f}",
        "machine": ", ".join(record["hardware"]["gpus"])
        or f"{record['hardware']['cpu']}, {record['hardware']['cpus']} cores",
        "seed": str(record["seed"]),
        "commit": record["commit"],
        "record": f"[json]({path})",
        "command": f"`{record['command']}`",
    }
    return row


def render(configs: Path, records: Path) -> str:
    """Return the text of MODEL_ZOO.md."""
    by_config = read_records(records)
    models = tabulate(
        list(_model_rows(configs, by_config)),
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
    )
    runs = tabulate(
        [
            _record_row(config, path, record)
            for config, runs in sorted(by_config.items())
            for path, record in runs
        ],
        headers="keys",
        tablefmt="github",
        disable_numparse=True,
    )
    # Columns padded for reading would make every line of a diff change with one cell.
    tables = [re.sub(r" {2,}", " ", re.sub(r"-{3,}", "---", table)) for table in (models, runs)]
    return f"{INTRODUCTION}\n{tables[0]}\n\n{RECORDS}\n{tables[1]}\n"


def main(argv: list[str] | None = None) -> int:
    """Write the file, or with ``--check`` say whether it is up to date; returns the exit status."""
    parser = argparse.ArgumentParser("python -m yolof_d2.tools.model_zoo", description=__doc__)
    parser.add_argument("--configs", type=Path, default=Path("configs"))
    parser.add_argument("--records", type=Path, default=Path("records"))
    parser.add_argument("--output", type=Path, default=Path("MODEL_ZOO.md"))
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if out of date"
    )
    args = parser.parse_args(argv)
    for folder in (args.configs, args.records):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}; run it in the repository, or name yours")
    try:
        text = render(args.configs, args.records)
    except UserError as error:
        sys.exit(f"error: {error}")
    if args.check:
        current = args.output.read_text() if args.output.is_file() else ""
        if current != text:
            sys.exit(f"{args.output} is out of date; run python -m yolof_d2.tools.model_zoo")
        return 0
    write_text(args.output, text, durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
