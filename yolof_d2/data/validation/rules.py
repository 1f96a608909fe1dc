"""Rules for a COCO json. All problems are found before training and reported together.

An **error** stops the run, which would crash later or give meaningless numbers. After a **warning**
it goes on: Detectron2 copes, usually by leaving something out. Rules marked "train" or "test" apply
only to data used for that.

======================  ========  ============================================================
kind                    severity  rule, and what would happen otherwise
======================  ========  ============================================================
json                    error     the file cannot be read or is not json
format                  error     not COCO: no object at the top; 'images', 'categories' (train:
                                  'annotations') absent, or not lists; images or categories empty
entry                   error     an image, annotation or category lacks a key, or has a value
                                  of the wrong type (ids, sizes, names)
duplicate_image         error     an image id used twice: one image replaces the other
duplicate_annotation    error     an annotation id used twice: Detectron2 refuses the file
duplicate_category      error     a category id used twice
unknown_category        error     category_id not in 'categories': Detectron2 stops
bad_box                 error     bbox is not four finite numbers
bad_iscrowd             error     iscrowd is neither 0 nor 1 (Detectron2 would drop the object)
ignore_flag             error     "ignore" is not 0: Detectron2 refuses the file
image_folder            error     the image folder is absent or cannot be listed
missing_image           error     the image file is absent
unreadable_image        error     (headers) the file is no image that Pillow can open
image_size              error     (headers) the file's size, after EXIF rotation, differs
nothing_to_learn        error     train: no annotation at all, or none but crowds
missing_for_evaluation  error     test: no area or no iscrowd; pycocotools needs both: AP_S/M/L
                                  come from area, and a missing key crashes after the inference
num_classes             error     (check_datasets) number of categories differs from the model's
not_registered          error     (check_datasets) a name in the config is not known
empty_box               warning   width or height <= 0: left out of training, unmatchable in test
box_outside             warning   box wholly outside the image: as above
box_exceeds             warning   box more than 1 pixel beyond the image: training clips it, the
                                  evaluation does not
unknown_image           warning   annotation of an image that is not listed: not used
annotation_id_zero      warning   test: pycocotools counts the match of an object with id 0 as a
                                  false positive
dropped_polygon         warning   every polygon has fewer than 3 points: Detectron2 drops the
                                  whole object, its box included
unused_category         warning   train: a category without any annotation
crowd_only_category     warning   train: a category with crowd annotations only: never learned
duplicate_file          warning   two image entries share one file
duplicate_name          warning   two categories share one name: their AP cannot be told apart
no_ground_truth         warning   test: no annotations: there will be no AP
======================  ========  ============================================================

Not a problem: images without annotations (they are counted; ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``
decides about them), and training annotations without area or iscrowd (Detectron2 takes an absent
iscrowd for 0 and does not use area).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from yolof_d2.data.datasets import read_coco_json
from yolof_d2.errors import DataError

from .image_files import ImageEntry, find_file_problems
from .report import Problem

BOX_TOLERANCE = 1.0
"""Pixels by which a box may exceed the image unreported: annotation tools round differently."""

_WARNINGS = (
    *("annotation_id_zero", "box_exceeds", "box_outside", "crowd_only_category", "dropped_polygon"),
    *("duplicate_file", "duplicate_name", "empty_box", "no_ground_truth", "unknown_image"),
    "unused_category",
)


@dataclass
class CocoCheck:
    """Check of one json and its images; :meth:`run` fills ``problems`` and the counts."""

    json_file: str
    image_folder: str  # folder that the file_name entries are relative to
    training: bool  # apply the rules for training data
    evaluation: bool  # apply those for test data, maybe too
    header_limit: float  # open the image files of a set of at most so many
    problems: list[Problem] = field(default_factory=list)
    images: dict[int | str, ImageEntry] | None = None  # by id; None if there is no such list
    categories: dict[int, str] | None = None
    num_annotations: int = 0
    num_empty_images: int = 0

    def run(self) -> CocoCheck:
        """Check everything, and return self; bad data raises nothing."""
        try:
            document = read_coco_json(self.json_file)
        except DataError as error:
            self.add("json", str(error))
            return self
        images = self._section(document, "images")
        categories = self._section(document, "categories")
        annotations = self._section(document, "annotations")
        if categories is not None:
            self.categories = self._check_categories(categories)
        if images is not None:
            self.images = self._check_images(images)
        if annotations is not None:
            self._check_annotations(annotations)
        for finding in find_file_problems(self.image_folder, self.images or {}, self.header_limit):
            self.add(*finding)
        return self

    @property
    def counts(self) -> str:
        """Numbers of images, annotations and categories, as a sentence."""
        images = f"{len(self.images or ())} images, {self.num_empty_images} of them without"
        categories = f"{len(self.categories or ())} categories"
        return f"{images} annotations; {self.num_annotations} annotations, {categories}"

    def add(self, kind: str, message: str, image: Any = None, annotation_id: Any = None) -> None:
        """Add a problem; the arguments are those of :class:`Problem`."""
        severity: Literal["error", "warning"] = "warning" if kind in _WARNINGS else "error"
        self.problems.append(Problem(severity, kind, self.json_file, image, annotation_id, message))

    def _section(self, document: dict[str, Any], key: str) -> list[Any] | None:
        section = document.get(key)
        if key == "annotations" and key not in document and not self.training:
            self.add("no_ground_truth", "no 'annotations': there will be no AP")
        elif key not in document:
            self.add("format", f"not in COCO format: {key!r} is missing")
        elif not isinstance(section, list):
            found = type(section).__name__
            self.add("format", f"not in COCO format: {key!r} must be a list, got {found}")
        elif not section and key != "annotations":
            self.add("format", f"{key!r} is empty")
        else:
            return section
        return None

    def _objects(self, key: str, entries: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield place, for messages, and value of each entry; report what is no object."""
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield f"{key}[{index}]", entry
            else:
                self.add("entry", f"{key}[{index}] is not an object: {entry!r:.80}")

    def _check_categories(self, entries: list[Any]) -> dict[int, str]:
        known: dict[int, str] = {}
        for place, entry in self._objects("categories", entries):
            identifier: Any = entry.get("id")
            name = entry.get("name")
            if not _is_int(identifier):
                self.add("entry", f"{place}: id must be an integer: {entry!r:.80}")
                continue
            if not isinstance(name, str):
                self.add("entry", f"category {identifier}: name must be a string")
            if identifier in known:
                self.add("duplicate_category", f"category id {identifier} is used twice")
            known[identifier] = str(name)
        for name, count in Counter(known.values()).items():
            if count > 1:
                self.add("duplicate_name", f"{count} categories have the name {name!r}")
        return known

    def _check_images(self, entries: list[Any]) -> dict[int | str, ImageEntry]:
        known: dict[int | str, ImageEntry] = {}
        first_with_file: dict[str, int | str] = {}
        for place, entry in self._objects("images", entries):
            identifier: Any = entry.get("id")
            name = entry["file_name"] if isinstance(entry.get("file_name"), str) else ""
            shown = name or (identifier if isinstance(identifier, (int, str)) else None)
            faults = _find_faults(entry, _IMAGE_KEYS)
            if faults:
                self.add("entry", f"{place}: {faults}", shown)
            if not _is_id(identifier):
                continue
            if identifier in known:
                message = f"image id {identifier!r} also belongs to {known[identifier].name!r}"
                self.add("duplicate_image", message, shown)
            elif name:
                # Only of different ids: a repeated id is already reported above.
                first = first_with_file.setdefault(name, identifier)
                if first != identifier:
                    both = f"image ids {first!r} and {identifier!r}"
                    self.add("duplicate_file", f"{both} share this file", name)
            # An image with faults counts as listed, so that its annotations are not reported too;
            # NaN makes every comparison with its borders false.
            width, height = (math.nan,) * 2 if faults else (entry["width"], entry["height"])
            known[identifier] = ImageEntry(name, width, height)
        return known

    def _check_annotations(self, entries: list[Any]) -> None:
        self.num_annotations = len(entries)
        seen: set[int] = set()
        with_annotation: set[int | str | None] = set()
        objects: Counter[int] = Counter()  # per category, of images that are listed
        crowds: Counter[int] = Counter()
        for place, entry in self._objects("annotations", entries):
            image_id: Any = entry.get("image_id") if _is_id(entry.get("image_id")) else None
            image = (self.images or {}).get(image_id)
            identifier: Any = entry.get("id")
            category: Any = entry.get("category_id")
            where = {
                "image": (image and image.name) or image_id,
                "annotation_id": identifier if isinstance(identifier, (int, str)) else None,
            }
            faults = _find_faults(entry, _ANNOTATION_KEYS)
            if faults:
                self.add("entry", f"{place}: {faults}", **where)
            if _is_int(identifier):
                self._check_id(identifier, seen, where)
            self._check_references(image_id, category, where)
            is_crowd = self._check_flags(entry, where)
            if "bbox" in entry:
                self._check_box(entry["bbox"], image, where)
            self._check_segmentation(entry.get("segmentation"), where)
            with_annotation.add(image_id)
            if _is_int(category) and (self.images is None or image is not None):
                objects[category] += 1
                crowds[category] += is_crowd
        self.num_empty_images = sum(key not in with_annotation for key in self.images or ())
        self._check_totals(objects, crowds)

    def _check_id(self, identifier: int, seen: set[int], where: dict[str, Any]) -> None:
        if identifier in seen:
            message = f"annotation id {identifier} is used twice; give every object its own"
            self.add("duplicate_annotation", message, **where)
        seen.add(identifier)
        if identifier == 0 and self.evaluation:
            message = "annotation id 0: pycocotools takes its match for none; start the ids at 1"
            self.add("annotation_id_zero", message, **where)

    def _check_references(self, image_id: Any, category: Any, where: dict[str, Any]) -> None:
        if image_id is not None and self.images is not None and image_id not in self.images:
            message = f"image_id {image_id!r} is not in 'images'; the annotation is not used"
            self.add("unknown_image", message, **where)
        if _is_int(category) and self.categories is not None and category not in self.categories:
            ids = sorted(self.categories)
            known = ", ".join(map(str, ids[:10])) + (f", ... {ids[-1]}" if len(ids) > 10 else "")
            message = f"category_id {category} is not in 'categories' (ids {known})"
            self.add("unknown_category", message, **where)

    def _check_flags(self, entry: dict[str, Any], where: dict[str, Any]) -> bool:
        """Check iscrowd, ignore and area; return whether the object is a crowd."""
        remedies = {"area": '"area" = width * height of the bbox', "iscrowd": '"iscrowd": 0'}
        missing = [key for key in remedies if key not in entry]
        if missing and self.evaluation:
            remedy = " and ".join(remedies[key] for key in missing)
            message = f"{' and '.join(missing)} missing, which pycocotools needs; add {remedy}"
            self.add("missing_for_evaluation", message, **where)
        area = entry.get("area", 0)
        if self.evaluation and (not _is_number(area) or area < 0):
            self.add("entry", f"area must be a number >= 0, got {area!r:.40}", **where)
        iscrowd = entry.get("iscrowd", 0)
        if not isinstance(iscrowd, int) or iscrowd not in (0, 1):
            self.add("bad_iscrowd", f"iscrowd must be 0 or 1, got {iscrowd!r:.40}", **where)
            return False
        if entry.get("ignore", 0) != 0:
            found = f'"ignore" is {entry["ignore"]!r:.40}, which Detectron2 refuses'
            remedy = 'use "iscrowd": 1 for objects that should not count'
            self.add("ignore_flag", f"{found}; {remedy}", **where)
        return bool(iscrowd)

    def _check_box(self, box: Any, image: ImageEntry | None, where: dict[str, Any]) -> None:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
            expected = "four finite numbers [x, y, width, height]"
            self.add("bad_box", f"bbox must be {expected}, got {box!r:.80}", **where)
            return
        left, top, width, height = box
        right, bottom = left + width, top + height
        if width <= 0 or height <= 0:
            self.add("empty_box", f"bbox {box} has no size", **where)
        elif image is None:
            return
        elif left >= image.width or top >= image.height or right <= 0 or bottom <= 0:
            self.add("box_outside", f"bbox {box} is outside its {image.size} image", **where)
        elif max(-left, -top, right - image.width, bottom - image.height) > BOX_TOLERANCE:
            message = f"bbox {box} [x, y, width, height] exceeds its {image.size} image"
            self.add("box_exceeds", message, **where)

    def _check_segmentation(self, polygons: Any, where: dict[str, Any]) -> None:
        if isinstance(polygons, list) and polygons and not any(map(_is_polygon, polygons)):
            fault = "no polygon of the segmentation has 3 points (6 numbers)"
            remedy = "Detectron2 drops the object with its box: correct or remove the segmentation"
            self.add("dropped_polygon", f"{fault}; {remedy}", **where)

    def _check_totals(self, objects: Counter[int], crowds: Counter[int]) -> None:
        if not self.training:
            if not objects:
                self.add("no_ground_truth", "no annotations: there will be no AP")
        elif not objects:
            self.add("nothing_to_learn", "no annotation of any listed image: no training")
        elif objects == crowds:
            message = "every annotation has iscrowd 1, and crowds are not trained on"
            self.add("nothing_to_learn", message)
        else:
            for category, name in (self.categories or {}).items():
                shown = f"category {category} ({name!r})"
                if not objects[category]:
                    self.add("unused_category", f"{shown} has no annotation")
                elif objects[category] == crowds[category]:
                    self.add("crowd_only_category", f"{shown} has crowd annotations only")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) or isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return _is_number(value) and value >= 1 and int(value) == value


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0


_Keys = Mapping[str, tuple[Callable[[Any], bool], str]]  # key -> test of a value, what it expects
_IMAGE_KEYS: _Keys = {
    "id": (_is_id, "an integer or a string"),
    "file_name": (lambda value: isinstance(value, str) and value != "", "a string"),
    "width": (_is_side, "a whole number of pixels >= 1"),
    "height": (_is_side, "a whole number of pixels >= 1"),
}
_ANNOTATION_KEYS: _Keys = {
    "id": (_is_int, "an integer"),
    "image_id": (_is_id, "an integer or a string"),
    "category_id": (_is_int, "an integer"),
    "bbox": (lambda _: True, ""),  # its value has a rule of its own
}


def _find_faults(entry: dict[str, Any], keys: _Keys) -> str:
    """Describe the keys of an entry that are missing or have a value of the wrong type."""
    faults = []
    for key, (is_right, expected) in keys.items():
        if key not in entry and not expected:
            faults.append(f"{key} is missing")
        elif not is_right(entry.get(key)):
            got = f"{entry[key]!r:.40}" if key in entry else "nothing"
            faults.append(f"{key} must be {expected}, got {got}")
    return "; ".join(faults)
