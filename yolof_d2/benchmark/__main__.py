"""Time models side by side: ``python -m yolof_d2.benchmark``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from yolof_d2.command import run_command
from yolof_d2.files import write_text

from .comparison import choose_device, run_benchmark
from .contender import Options
from .render import describe_ratio, draw, render

FORMAT = 1
"""Version of the JSON record."""

DEFAULT_CONFIGS = (
    "configs/yolof_R_50_C5_1x.yaml",
    "configs/baselines/retinanet_R_50_FPN_1x_yolof_recipe.yaml",
)
# (on a GPU, on a CPU), where a step of the default models takes seconds.
_BATCH_SIZE = ((2, 1), (1, 1))
_WARMUP = (50, 1)
_ITERATIONS = (200, 6)


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        "python -m yolof_d2.benchmark",
        description="Time models side by side: speed, memory and multiply-adds, by part.",
    )
    add = parser.add_argument
    configs = "config files; the others are compared with the first "
    configs += "(default: YOLOF R50-C5 and RetinaNet R50-FPN)"
    add("configs", nargs="*", metavar="CONFIG", help=configs)
    size = "of an image in pixels, before padding (default: 800 1216)"
    add("--size", nargs=2, type=int, default=(800, 1216), metavar=("HEIGHT", "WIDTH"), help=size)
    images = "images of a step (default: 2 1 on a GPU, 1 1 on a CPU)"
    add("--batch-size", nargs=2, type=int, metavar=("TRAINING", "INFERENCE"), help=images)
    add("--objects", type=int, default=7, help="boxes in a training image (default: %(default)s)")
    passing = "candidates above the score threshold in a test image (default: %(default)s)"
    add("--boxes", type=int, default=300, help=passing)
    add("--warmup", type=int, help="rounds before those that count (default: 50; 1 on a CPU)")
    add("--iterations", type=int, help="rounds that count (default: 200; 6 on a CPU)")
    folder = "folder of JSON, table and plot (default: %(default)s)"
    add("--output", type=Path, default=Path("output/benchmark"), help=folder)
    opts = "config keys for all models, at the end, such as MODEL.DEVICE cpu or "
    opts += "SOLVER.AMP.ENABLED True"
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=opts)
    return parser


def run(args: argparse.Namespace) -> str:
    """Measure, write files, and return text: the tables, the names of the files, the ratios.

    Raises:
        ConfigError: a config or an option that cannot be used.
        OSError: the folder cannot be written.
    """
    on_cpu = choose_device(args.opts) == "cpu"
    options = Options(
        size=tuple(args.size),
        batch_size=tuple(args.batch_size or _BATCH_SIZE[on_cpu]),
        objects=args.objects,
        boxes=args.boxes,
        warmup=_WARMUP[on_cpu] if args.warmup is None else args.warmup,
        iterations=_ITERATIONS[on_cpu] if args.iterations is None else args.iterations,
    )
    record = run_benchmark(args.configs or DEFAULT_CONFIGS, args.opts, options)
    text = render(record)
    files = [args.output / f"benchmark.{suffix}" for suffix in ("json", "md", "png", "svg")]
    write_text(files[0], json.dumps({"format": FORMAT, **record}, indent=1) + "\n")
    write_text(files[1], text)
    draw(record, files[2:])
    lines = [text, "Written: " + ", ".join(map(str, files))]
    return "\n".join(lines + [describe_ratio(record, model) for model in record["models"][1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = build_parser().parse_args(argv)
    return run_command("yolof_d2.benchmark", lambda: sys.stdout.write(run(args) + "\n"))


if __name__ == "__main__":
    sys.exit(main())
