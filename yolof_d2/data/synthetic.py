"""Write a small synthetic COCO-format data set of circles, squares and triangles.

A small network learns it from scratch on a CPU, with nothing to download. Boxes are exact: they are
measured on the drawn pixels. Needs only NumPy and Pillow.

Command: ``python -m yolof_d2.data.synthetic FOLDER [--num-train 400] [--num-val 80] ...``
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from yolof_d2.files import replacing, write_text

CLASS_NAMES = ("circle", "square", "triangle")
"""Names of the categories 1, 2, 3."""

# Shades of red, green and blue: learning to tell shapes apart by their outline alone takes far
# longer than a demonstration may last.
_CLASS_HUES = (0.0, 0.35, 0.63)
MIN_OBJECT_SIZE = 10  # pixels; smaller shapes cannot be told apart
MIN_IMAGE_SIZE = 16  # pixels
_EMPTY_FRACTION = 0.08
_MAX_OBJECTS = 6
_MAX_COVERED = 0.15  # share of the smaller of two boxes that may overlap

_Box = tuple[int, int, int, int]  # x, y, width, height: whole pixels from the top-left corner


@dataclass(frozen=True)
class SyntheticDataset:
    """Paths of a written data set, for ``DATASETS.{TRAIN,TEST}_{JSON,IMAGES}``."""

    train_json: str
    val_json: str
    image_folder: str


@dataclass(frozen=True)
class SyntheticObject:
    """One drawn object."""

    category_id: int  # 1-based index into CLASS_NAMES
    bbox: _Box
    area: int  # pixels of the shape, before later objects cover some
    color: tuple[int, int, int]  # of the fill: R, G, B, each 0-255


def draw_scene(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    *,
    num_objects: int | None = None,
    cluttered: bool = True,
) -> tuple[np.ndarray, list[SyntheticObject]]:
    """Draw one image.

    Args:
        image_size: (height, width) in pixels.
        num_objects: objects to place; None = none at all in 8 % of the images, else 1 to 6.
            Fewer are placed where no room is found; at least one always fits.
        cluttered: with a background of gradients, noise, lines and grey blobs; else black.

    Returns:
        The image, uint8 (H, W, 3) in RGB order, and its objects.
    """
    height, width = image_size
    image = _background(rng, height, width) if cluttered else np.zeros((height, width, 3), np.uint8)
    if num_objects is None:
        is_empty = rng.random() < _EMPTY_FRACTION
        num_objects = 0 if is_empty else int(rng.integers(1, _MAX_OBJECTS + 1))

    # Log-uniform sizes: as many objects from 10 to 20 pixels as from 80 to 160. Large ones are
    # placed and drawn first, so that small ones are never hidden.
    largest = math.log(0.98 * min(height, width))
    smallest = min(math.log(MIN_OBJECT_SIZE), largest)
    sizes = [math.exp(rng.uniform(smallest, largest)) for _ in range(num_objects)]
    objects: list[SyntheticObject] = []
    for size in sorted(sizes, reverse=True):
        category_id = int(rng.integers(1, len(CLASS_NAMES) + 1))
        shape = _draw_shape(rng, category_id, size, height, width)
        box = _place(rng, shape, height, width, [other.bbox for other in objects])
        if box is None:
            continue
        hue = (_CLASS_HUES[category_id - 1] + rng.uniform(-0.08, 0.08)) % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1.0), rng.uniform(0.6, 1.0))
        color = (round(255 * red), round(255 * green), round(255 * blue))
        x, y, shape_width, shape_height = box
        image[y : y + shape_height, x : x + shape_width][shape] = color
        objects.append(SyntheticObject(category_id, box, int(shape.sum()), color))
    return image, objects


def _draw_shape(
    rng: np.random.Generator, category_id: int, size: float, height: int, width: int
) -> np.ndarray:
    """Draw a shape of about ``size`` pixels; bool, cropped to its first and last row and column."""
    aspect = math.exp(rng.uniform(math.log(0.8), math.log(1.25)))
    columns = max(round(min(size * math.sqrt(aspect), width)), 1)
    rows = max(round(min(size / math.sqrt(aspect), height)), 1)
    direction = int(rng.integers(4))
    # Pixel centres in [-1, 1].
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) * 2 / rows - 1,
        (np.arange(columns) + 0.5) * 2 / columns - 1,
        indexing="ij",
    )
    if CLASS_NAMES[category_id - 1] == "circle":
        mask = x**2 + y**2 <= 1
    elif CLASS_NAMES[category_id - 1] == "square":
        mask = np.ones_like(x, dtype=bool)
    else:
        along, across = [(y, x), (-y, x), (x, y), (-x, y)][direction]
        mask = np.abs(across) <= (along + 1) / 2  # from the tip at -1 to the base at 1
    used_rows, used_columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[used_rows[0] : used_rows[-1] + 1, used_columns[0] : used_columns[-1] + 1]


def _place(
    rng: np.random.Generator, shape: np.ndarray, height: int, width: int, taken: list[_Box]
) -> _Box | None:
    """Return a random box for a shape that leaves the ``taken`` ones visible; None without room."""
    shape_height, shape_width = shape.shape
    for _ in range(40):
        x = int(rng.integers(0, width - shape_width + 1))
        y = int(rng.integers(0, height - shape_height + 1))
        box = (x, y, shape_width, shape_height)
        if all(_covered(box, other) <= _MAX_COVERED for other in taken):
            return box
    return None


def _covered(a: _Box, b: _Box) -> float:
    """Return the intersection of two boxes over the area of the smaller one."""
    overlap_x = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    overlap_y = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(overlap_x, 0) * max(overlap_y, 0) / min(a[2] * a[3], b[2] * b[3])


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw greyish clutter, uint8 (H, W, 3), without the saturated colour of an object."""
    corners = rng.uniform(50, 200, size=(2, 2, 1)) + rng.uniform(-18, 18, size=(2, 2, 3))
    v = np.linspace(0, 1, height)[:, None, None]
    u = np.linspace(0, 1, width)[None, :, None]
    gradient = (
        corners[0, 0] * (1 - v) * (1 - u)
        + corners[0, 1] * (1 - v) * u
        + corners[1, 0] * v * (1 - u)
        + corners[1, 1] * v * u
    )
    canvas = Image.fromarray(np.clip(gradient, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(2, 7))):
        _draw_blob(rng, draw, height, width)
    for _ in range(int(rng.integers(3, 10))):
        ends = rng.uniform([0, 0, 0, 0], [width, height, width, height]).round().astype(int)
        draw.line(ends.tolist(), fill=_grey(rng), width=int(rng.integers(1, 4)))
    # Two grains: single pixels, and patches of 4.
    fine = rng.integers(-12, 13, size=(height, width, 1))
    coarse = rng.integers(-12, 13, size=(-(-height // 4), -(-width // 4), 1))
    coarse = coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return np.clip(np.asarray(canvas).astype(np.int64) + fine + coarse, 0, 255).astype(np.uint8)


def _draw_blob(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int
) -> None:
    """Draw a grey star-shaped polygon of 7 to 12 corners, which is none of the classes."""
    corners = int(rng.integers(7, 13))
    radius = rng.uniform(0.03, 0.25) * min(height, width)
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * math.pi / corners
    radii = radius * rng.uniform(0.35, 1.0, corners)
    center = rng.uniform([0, 0], [width, height])
    points = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    draw.polygon([(x, y) for x, y in points.round().astype(int).tolist()], fill=_grey(rng))


def _grey(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(rng.uniform(20, 235) + rng.uniform(-12, 12, 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def write_synthetic_dataset(
    folder: str | os.PathLike[str],
    *,
    num_train: int = 400,
    num_val: int = 80,
    image_size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> SyntheticDataset:
    """Write the data set: ``images/*.png`` and ``annotations/instances_{train,val}.json``.

    The same arguments give the same bytes. Image i of a split depends on ``seed``, the split, i
    and ``image_size`` only, so a larger set contains the smaller one. A second call in the same
    folder replaces the first; no json exists while it runs, so that no half-written set is used.

    Args:
        num_train, num_val: images of each split, >= 1.
        image_size: (height, width) in pixels, each >= 16.
        seed: >= 0.

    Raises:
        ValueError: an argument is out of its range.
    """
    if min(num_train, num_val) < 1:
        raise ValueError(f"num_train and num_val must be >= 1, got {num_train} and {num_val}")
    if len(image_size) != 2 or min(image_size) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"image_size must be (height, width), each >= {MIN_IMAGE_SIZE} pixels, got {image_size}"
        )
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    images, annotations = Path(folder, "images"), Path(folder, "annotations")
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    counts = {"train": num_train, "val": num_val}
    json_files = {split: annotations / f"instances_{split}.json" for split in counts}
    for split, path in json_files.items():
        path.unlink(missing_ok=True)
        # The images of an earlier, perhaps larger set; files of other names are not ours.
        for image in images.glob(f"{split}_" + "[0-9]" * 6 + ".png"):
            image.unlink()

    documents = [
        _write_split(images, split, count, image_size, [seed, index])
        for index, (split, count) in enumerate(counts.items())
    ]
    for document, path in zip(documents, json_files.values(), strict=True):
        write_text(path, json.dumps(document, indent=1), durable=False)
    return SyntheticDataset(str(json_files["train"]), str(json_files["val"]), str(images))


def _write_split(
    folder: Path, split: str, count: int, image_size: tuple[int, int], seed: list[int]
) -> dict[str, list[dict[str, object]]]:
    """Draw and save the images of one split; return its COCO document."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(1, count + 1):
        # One generator per image: adding images changes none of the others.
        image, objects = draw_scene(np.random.default_rng([*seed, index]), image_size)
        name = f"{split}_{index:06d}.png"
        with replacing(folder / name, durable=False) as file:
            # Lossless, so that the boxes can be checked against the pixels.
            Image.fromarray(image).save(file, format="PNG", compress_level=1)
        height, width = image_size
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for drawn in objects:
            number, category = len(annotations) + 1, drawn.category_id
            entry = {"id": number, "image_id": index, "category_id": category}
            shape = {"bbox": list(drawn.bbox), "area": drawn.area, "iscrowd": 0}
            annotations.append({**entry, **shape})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a data set, print the config values that use it, and return exit code 0."""
    parser = argparse.ArgumentParser(
        prog="python -m yolof_d2.data.synthetic",
        description="Write a small synthetic COCO-format data set of circles, squares, triangles.",
    )
    parser.add_argument("folder", help="folder to write to; created if needed")
    parser.add_argument("--num-train", type=int, default=400, help="training images")
    parser.add_argument("--num-val", type=int, default=80, help="validation images")
    parser.add_argument(
        "--image-size", type=int, nargs=2, default=(192, 192), metavar=("H", "W"), help="pixels"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    args.image_size = tuple(args.image_size)
    try:
        paths = write_synthetic_dataset(**vars(args))
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(
        f"DATASETS.TRAIN_JSON {paths.train_json}\nDATASETS.TRAIN_IMAGES {paths.image_folder}\n"
        f"DATASETS.TEST_JSON {paths.val_json}\nDATASETS.TEST_IMAGES {paths.image_folder}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
