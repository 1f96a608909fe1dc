"""Cut the first images out of a COCO-format json.

python -m yolof_d2.tools.subset IN OUT NUM_IMAGES

A model that cannot overfit eight images has a bug, or a wrong setting; this makes the eight.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from yolof_d2.command import run_command
from yolof_d2.data.datasets import read_coco_json
from yolof_d2.errors import DataError
from yolof_d2.files import write_text

logger = logging.getLogger("yolof_d2.tools.subset")


def write_subset(json_file: Path, output: Path, num_images: int) -> None:
    """Write the first ``num_images`` images of ``json_file``, their annotations and all categories.

    Raises:
        DataError: ``json_file`` is missing or not COCO, or has fewer images.
    """
    document = read_coco_json(str(json_file))
    images = document.get("images", [])
    if not 0 < num_images <= len(images):
        raise DataError(f"NUM_IMAGES must be 1 to {len(images)} ({json_file}), got {num_images}")
    kept = {image["id"] for image in images[:num_images]}
    annotations = [note for note in document.get("annotations", []) if note["image_id"] in kept]
    subset = {**document, "images": images[:num_images], "annotations": annotations}
    write_text(output, json.dumps(subset), durable=False)
    logger.info("%s: %d images, %d annotations", output, num_images, len(annotations))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json_file", type=Path, metavar="IN")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("num_images", type=int, metavar="NUM_IMAGES")
    args = parser.parse_args(arguments)
    return run_command(logger.name, lambda: write_subset(**vars(args)))


if __name__ == "__main__":
    sys.exit(main())
