"""Check that the image files of a data set exist and are as large as the json says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from PIL import Image

from yolof_d2.data.datasets import IMAGE_READ_ERRORS

_EXIF_ORIENTATION = 274


class ImageEntry(NamedTuple):
    """An image in the json: file name ("" if unknown) and sides in pixels (NaN if unknown)."""

    name: str
    width: float
    height: float

    @property
    def size(self) -> str:
        return f"{self.width:g} x {self.height:g}"


def find_file_problems(
    folder: str, images: Mapping[int | str, ImageEntry], header_limit: float
) -> Iterator[tuple[str, str] | tuple[str, str, str]]:
    """Yield kind and message of each problem, and the image's name if it is about one.

    Every file is opened if there are at most ``header_limit``.
    """
    if images and not os.path.isdir(folder):
        yield "image_folder", f"image folder {folder} does not exist"
        return
    entries = {image.name: image for image in images.values() if image.name}
    listings: dict[str, tuple[set[str], set[str]]] = {}
    num_missing = 0
    for name, image in entries.items():
        # Joined as in Detectron2: an absolute file_name stays as it is.
        path = os.path.join(folder, name)
        parent, base = os.path.split(path)
        if parent not in listings:
            listings[parent] = _list_files(parent)
        names, lower_case_names = listings[parent]
        if base not in names:
            # Whether the case matters is up to the file system: ask it, but only here.
            other_case = base.lower() in lower_case_names
            if not (other_case and os.path.isfile(path)):
                num_missing += 1
                hint = " (a file whose name differs in case does)" if other_case else ""
                yield "missing_image", f"{path} does not exist{hint}", name
                continue
        if len(entries) <= header_limit:
            yield from _check_header(path, image)
    if num_missing and num_missing == len(entries):
        found = f"none of the {num_missing} images is in {folder}: is it the right folder?"
        yield "image_folder", f"{found} (file_name in the json is relative to it)"


def _check_header(path: str, image: ImageEntry) -> Iterator[tuple[str, str, str]]:
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            # Detectron2 rotates on reading; orientations 5 to 8 swap the sides.
            if opened.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
    except IMAGE_READ_ERRORS as error:
        yield "unreadable_image", f"cannot be opened: {error}", image.name
        return
    if not math.isnan(image.width) and (width, height) != (image.width, image.height):
        found = f"{width} x {height} pixels (after EXIF rotation)"
        yield "image_size", f"the file has {found}, the json says {image.size}", image.name


def _list_files(folder: str) -> tuple[set[str], set[str]]:
    """Return the names of the files in a folder, as they are and in lower case.

    One listing instead of a system call for each of 100 000 images. Empty if it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        names = set()
    return names, {name.lower() for name in names}
