"""Convert weights of other projects to ours, or ours to theirs.

Into ours:
  python -m yolof_d2.convert epoch_12.pth yolof.pth --from mmdet
  python -m yolof_d2.convert resnet50.pth R-50-torchvision.pth --from torchvision
Out of ours:
  python -m yolof_d2.convert model_final.pth mmdet.pth --to mmdet

Without --from and --to, the format is found by the names in SOURCE. Nothing is written unless
SOURCE has all weights of the model, in the right shapes. The model is that of --config-file and KEY
VALUE pairs; without a config file, it is deduced from the weights. The report goes to the standard
error, the config lines for the weights to the standard output.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from yolof_d2.command import run_command
from yolof_d2.errors import UserError

from .formats import (
    FORMATS,
    Conversion,
    Format,
    convert_to_ours,
    convert_to_theirs,
    detect_format,
    select,
    show,
)
from .model import UNKNOWN_VALUES, build_expected, deduce_config, fit
from .weight_files import read_weights, write_atomically

logger = logging.getLogger("yolof_d2.convert")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m yolof_d2.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="checkpoint to read")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file to write, *.pth")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--from", dest="from_", choices=FORMATS, help="SOURCE is theirs")
    to = ("mmdet", "torchvision")
    direction.add_argument("--to", choices=to, help="SOURCE is ours, TARGET theirs")
    parser.add_argument("--config-file", default="", metavar="FILE", help="of our model")
    unsafe = "also read Python objects, which may run code"
    parser.add_argument("--unsafe", action="store_true", help=unsafe)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change the config")
    args = parser.parse_intermixed_args(arguments)
    return run_command(logger.name, lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    if args.target.suffix != ".pth":
        raise UserError(f"TARGET must end in .pth, by which Detectron2 knows it; got {args.target}")
    if args.target.resolve() == args.source.resolve():
        raise UserError(f"SOURCE and TARGET are the same file: {args.source}")
    source, others = read_weights(args.source, unsafe=args.unsafe)
    name = args.to or args.from_ or detect_format(source)
    layout = FORMATS[name]

    start = select(source, layout) if args.to else convert_to_ours(source, layout)
    fitted, deduced = _fit_to_model(start, layout, args)

    note = f" ({layout.note})" if layout.note else ""
    if args.to:
        result = _chain(fitted, convert_to_theirs(fitted.weights, layout))
        weights = dict(result.weights)
        theirs = {"meta": {}, "state_dict": weights} if layout.wrapped else weights
        write_atomically(theirs, args.target)
        _report(f"{args.target} (for {name})", result, others)
        logger.info("It works there as here if the config of our model has%s:", note)
        sys.stdout.write(_format_config(layout.config))
        return
    content = {
        "model": dict(fitted.weights),
        "__author__": f"{name}, converted by yolof_d2",
        # Detectron2 then finds a ResNet behind any prefix: backbone., backbone.bottom_up.
        "matching_heuristics": layout.backbone_only,
    }
    write_atomically(content, args.target)
    _report(f"{args.target} (from {name})", fitted, others)
    logger.info("The config needs%s:", note)
    known = {key: value for key, value in deduced.items() if key not in UNKNOWN_VALUES}
    sys.stdout.write(_format_config({"MODEL.WEIGHTS": str(args.target), **layout.config, **known}))


def _fit_to_model(
    start: Conversion, layout: Format, args: argparse.Namespace
) -> tuple[Conversion, dict[str, Any]]:
    """Fit to the model of the config; return the deduced config keys too."""
    deduced: dict[str, Any] = {}
    to_source = () if args.to else [(ours, theirs) for theirs, ours in layout.rules]
    try:
        if not args.config_file:
            deduced = deduce_config(start.weights, resnet_only=layout.backbone_only)
        model = build_expected(args.config_file, args.overrides, deduced)
        return fit(start, select(model, layout).weights, to_source), deduced
    except UserError as error:
        if not start.not_placed:
            raise
        raise UserError(f"{error}\n  without a place: {show(start.not_placed)}") from error


def _chain(first: Conversion, second: Conversion) -> Conversion:
    """Join two conversions, with names of the first one's source."""
    origin = {name: first.origin[between] for name, between in second.origin.items()}
    left_out = {first.origin[name]: reason for name, reason in second.left_out.items()}
    left_out = {**first.left_out, **left_out}
    return replace(second, origin=origin, left_out=left_out, not_placed=first.not_placed)


def _report(title: str, result: Conversion, others: Sequence[str]) -> None:
    logger.info("%s: %d weights", title, len(result.origin))
    if result.added:
        added = list(result.added)
        logger.info("  zeros: %d biases that only we have (%s)", len(added), show(added, 2))
    for reason in dict.fromkeys(result.left_out.values()):
        names = [name for name, why in result.left_out.items() if why == reason]
        logger.info("  left out: %d, %s (%s)", len(names), reason, show(names, 3))
    if others:
        logger.info("  left out: no weights (%s)", show(others, 10))
    if left := result.not_placed:
        lines = "\n    ".join(["", *left])
        logger.warning("  NOT PLACED: %d, for which the model has no place%s", len(left), lines)


def _format_config(keys: Mapping[str, Any]) -> str:
    """Return config keys in dotted form as YAML."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *nodes, leaf = key.split(".")
        node = tree
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = value
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


if __name__ == "__main__":
    sys.exit(main())
