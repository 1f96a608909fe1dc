"""Find the problems of a data set before training, all of them in one report.

An **error** stops the run: it would crash later, or give numbers that mean nothing. A **warning**
is told and the run goes on: Detectron2 copes, usually by leaving something out. Rules marked
"train" or "test" apply only to data used for that.

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

Command: ``python -m yolof_d2.data.validation JSON IMAGES [--headers] [--use train|test]``.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from yolof_d2.config import num_classes, num_classes_node
from yolof_d2.errors import DataError

from .datasets import IMAGE_READ_ERRORS, read_coco_json

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = [
    "HEADER_CHECK_MAX_IMAGES",
    "REPORT_NAME",
    "Problem",
    "check_coco_json",
    "check_datasets",
    "format_report",
    "main",
]

logger = logging.getLogger(__name__)

BOX_TOLERANCE = 1.0
"""Pixels by which a box may exceed the image unreported: annotation tools round differently."""
HEADER_CHECK_MAX_IMAGES = 2000
"""Up to this size :func:`check_datasets` opens every image (well under a minute on a disk)."""
REPORT_NAME = "data_report.txt"
"""File in OUTPUT_DIR that holds the whole report."""

_EXIF_ORIENTATION = 274


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        severity: "error" stops the run, "warning" does not.
        kind: rule that was broken, see the table in the module's docstring.
        json_file: path of the annotation file (or the data set's name if it has none).
        image: file name of the image concerned, its id if no name is known, None if it is about
            no image.
        annotation_id: id of the annotation concerned, or None.
        message: what is wrong, what was expected and, where not obvious, what to do.
    """

    severity: Literal["error", "warning"]
    kind: str
    json_file: str
    image: str | int | None
    annotation_id: int | str | None
    message: str

    def __str__(self) -> str:
        where = []
        if self.image is not None:
            where.append(f"image {self.image!r}")
        if self.annotation_id is not None:
            where.append(f"annotation {self.annotation_id!r}")
        return f"{', '.join(where)}: {self.message}" if where else self.message


@dataclass
class _Image:
    """What the later checks need of an image entry. Sizes in pixels."""

    name: str
    width: float
    height: float


@dataclass
class _Check:
    """The checks of one json; fills ``problems`` and the counts."""

    json_file: str
    image_folder: str
    training: bool
    evaluation: bool
    read_headers: bool | int  # an int: only if there are at most that many images
    problems: list[Problem] = field(default_factory=list)
    num_images: int = 0
    num_annotations: int = 0
    num_categories: int = 0
    num_empty_images: int = 0

    def run(self) -> _Check:
        # Imported here: the reader lives beside the registration, which needs Detectron2.
        try:
            document = read_coco_json(self.json_file)
        except DataError as error:
            self.add("error", "json", str(error))
            return self
        images = self._section(document, "images", required=True)
        categories = self._section(document, "categories", required=True)
        annotations = self._section(document, "annotations", required=self.training)
        known_categories = self._check_categories(categories) if categories is not None else None
        known_images = self._check_images(images) if images is not None else None
        if annotations is not None:
            self._check_annotations(annotations, known_images, known_categories)
        elif "annotations" not in document and not self.training:
            self.add("warning", "no_ground_truth", "no 'annotations': there will be no AP")
        if known_images:
            self._check_files(known_images)
        return self

    def add(
        self,
        severity: Literal["error", "warning"],
        kind: str,
        message: str,
        image: str | int | None = None,
        annotation_id: int | str | None = None,
    ) -> None:
        self.problems.append(Problem(severity, kind, self.json_file, image, annotation_id, message))

    def _section(self, document: dict[str, Any], key: str, *, required: bool) -> list[Any] | None:
        if key not in document:
            if required:
                self.add("error", "format", f"not in COCO format: {key!r} is missing")
            return None
        section = document[key]
        if not isinstance(section, list):
            self.add(
                "error",
                "format",
                f"not in COCO format: {key!r} must be a list, got {type(section).__name__}",
            )
            return None
        if not section and key != "annotations":
            self.add("error", "format", f"{key!r} is empty")
            return None
        return section

    def _check_categories(self, entries: list[Any]) -> dict[int, str]:
        known: dict[int, str] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.add("error", "entry", f"categories[{index}] is not an object: {entry!r:.80}")
                continue
            identifier: Any = entry.get("id")
            name: Any = entry.get("name")
            if not _is_int(identifier):
                self.add(
                    "error", "entry", f"categories[{index}]: id must be an integer: {entry!r:.80}"
                )
                continue
            if not isinstance(name, str):
                self.add("error", "entry", f"category {identifier}: name must be a string")
            if identifier in known:
                self.add("error", "duplicate_category", f"category id {identifier} is used twice")
            known[identifier] = str(name)
        for name, count in Counter(known.values()).items():
            if count > 1:
                self.add("warning", "duplicate_name", f"{count} categories have the name {name!r}")
        self.num_categories = len(known)
        return known

    def _check_images(self, entries: list[Any]) -> dict[int | str, _Image]:
        known: dict[int | str, _Image] = {}
        first_with_file: dict[str, int | str] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.add("error", "entry", f"images[{index}] is not an object: {entry!r:.80}")
                continue
            identifier: Any = entry.get("id")
            name: Any = entry.get("file_name")
            shown = name if isinstance(name, str) else identifier
            if not isinstance(shown, (str, int)):
                shown = None
            faults = []
            if not (_is_int(identifier) or isinstance(identifier, str)):
                faults.append(f"id must be an integer or a string, got {_show(entry, 'id')}")
            if not isinstance(name, str) or not name:
                faults.append(f"file_name must be a string, got {_show(entry, 'file_name')}")
            for key in ("width", "height"):
                value: Any = entry.get(key)
                if not _is_number(value) or value < 1 or int(value) != value:
                    faults.append(
                        f"{key} must be a whole number of pixels >= 1, got {_show(entry, key)}"
                    )
            if faults:
                self.add("error", "entry", f"images[{index}]: " + "; ".join(faults), image=shown)
            if any(fault.startswith("id ") for fault in faults):
                continue
            if identifier in known:
                self.add(
                    "error",
                    "duplicate_image",
                    f"image id {identifier!r} is also that of {known[identifier].name!r}",
                    image=shown,
                )
            elif isinstance(name, str) and name:
                # Only of different ids: a repeated id is already reported above.
                if name in first_with_file:
                    self.add(
                        "warning",
                        "duplicate_file",
                        f"image ids {first_with_file[name]!r} and {identifier!r} share this file",
                        image=name,
                    )
                first_with_file.setdefault(name, identifier)
            # With faults the image is still known, so that its annotations are not reported as
            # strays; NaN makes every comparison with its borders false.
            size = (math.nan, math.nan) if faults else (float(entry["width"]), entry["height"])
            known[identifier] = _Image(
                name if isinstance(name, str) else "", size[0], float(size[1])
            )
        self.num_images = len(known)
        return known

    def _check_annotations(
        self,
        entries: list[Any],
        images: dict[int | str, _Image] | None,
        categories: dict[int, str] | None,
    ) -> None:
        self.num_annotations = len(entries)
        seen_ids: set[int] = set()
        with_annotation: set[int | str] = set()
        per_category: Counter[int] = Counter()
        crowds_per_category: Counter[int] = Counter()
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.add("error", "entry", f"annotations[{index}] is not an object: {entry!r:.80}")
                continue
            identifier: Any = entry.get("id")
            image_id: Any = entry.get("image_id")
            image = None
            faults = []
            if not _is_int(identifier):
                faults.append(f"id must be an integer, got {_show(entry, 'id')}")
            if not (_is_int(image_id) or isinstance(image_id, str)):
                faults.append(
                    f"image_id must be an integer or a string, got {_show(entry, 'image_id')}"
                )
                image_id = None
            elif images is not None:
                image = images.get(image_id)
            category = entry.get("category_id")
            if not _is_int(category):
                faults.append(f"category_id must be an integer, got {_show(entry, 'category_id')}")
                category = None
            if "bbox" not in entry:
                faults.append("bbox is missing")
            shown_image = (image.name or image_id) if image is not None else image_id
            shown_id = identifier if isinstance(identifier, (int, str)) else None
            where: dict[str, Any] = {"image": shown_image, "annotation_id": shown_id}
            if faults:
                self.add("error", "entry", f"annotations[{index}]: " + "; ".join(faults), **where)

            if _is_int(identifier):
                if identifier in seen_ids:
                    self.add(
                        "error",
                        "duplicate_annotation",
                        f"annotation id {identifier} is used before; give every object its own",
                        **where,
                    )
                seen_ids.add(identifier)
                if identifier == 0 and self.evaluation:
                    self.add(
                        "warning",
                        "annotation_id_zero",
                        "annotation id 0: pycocotools takes a match with it for no match; "
                        "start the ids at 1",
                        **where,
                    )
            if image_id is not None:
                if images is not None and image is None:
                    self.add(
                        "warning",
                        "unknown_image",
                        f"image_id {image_id!r} is not in 'images'; the annotation is not used",
                        **where,
                    )
                with_annotation.add(image_id)
            if category is not None and categories is not None and category not in categories:
                self.add(
                    "error",
                    "unknown_category",
                    f"category_id {category} is not in 'categories' (ids {_ids(categories)})",
                    **where,
                )
            is_crowd = self._check_flags(entry, where)
            if category is not None and (images is None or image is not None):
                per_category[category] += 1
                crowds_per_category[category] += is_crowd
            if "bbox" in entry:
                self._check_box(entry["bbox"], image, where)
            segmentation = entry.get("segmentation")
            if (
                isinstance(segmentation, list)
                and segmentation
                and not any(_is_polygon(polygon) for polygon in segmentation)
            ):
                self.add(
                    "warning",
                    "dropped_polygon",
                    "no polygon of the segmentation has 3 points (6 numbers); Detectron2 drops "
                    "the object with its box: correct or remove the segmentation",
                    **where,
                )

        if images is not None:
            self.num_empty_images = sum(image_id not in with_annotation for image_id in images)
        self._check_totals(per_category, crowds_per_category, categories)

    def _check_flags(self, entry: dict[str, Any], where: dict[str, Any]) -> bool:
        """iscrowd, ignore and area; returns whether it is a crowd."""
        missing = [key for key in ("area", "iscrowd") if key not in entry]
        if missing and self.evaluation:
            remedy = {"area": '"area" = width * height of the bbox', "iscrowd": '"iscrowd": 0'}
            self.add(
                "error",
                "missing_for_evaluation",
                f"{' and '.join(missing)} missing, which pycocotools needs; add "
                + " and ".join(remedy[key] for key in missing),
                **where,
            )
        if self.evaluation and "area" in entry:
            area = entry["area"]
            if not _is_number(area) or area < 0:
                self.add("error", "entry", f"area must be a number >= 0, got {area!r:.40}", **where)
        iscrowd = entry.get("iscrowd", 0)
        if not isinstance(iscrowd, int) or iscrowd not in (0, 1):
            self.add(
                "error", "bad_iscrowd", f"iscrowd must be 0 or 1, got {iscrowd!r:.40}", **where
            )
            return False
        if entry.get("ignore", 0) != 0:
            self.add(
                "error",
                "ignore_flag",
                f'"ignore" is {entry["ignore"]!r:.40}, which Detectron2 refuses; use "iscrowd": 1 '
                "for objects that shall not count",
                **where,
            )
        return bool(iscrowd)

    def _check_box(self, box: Any, image: _Image | None, where: dict[str, Any]) -> None:
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
            self.add(
                "error",
                "bad_box",
                f"bbox must be four finite numbers [x, y, width, height], got {box!r:.80}",
                **where,
            )
            return
        x, y, width, height = box
        if width <= 0 or height <= 0:
            self.add("warning", "empty_box", f"bbox {box} has no size", **where)
            return
        if image is None:
            return
        size = f"{image.width:g} x {image.height:g}"
        if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
            self.add("warning", "box_outside", f"bbox {box} is outside its {size} image", **where)
        elif (
            min(x, y) < -BOX_TOLERANCE
            or x + width > image.width + BOX_TOLERANCE
            or y + height > image.height + BOX_TOLERANCE
        ):
            self.add(
                "warning",
                "box_exceeds",
                f"bbox {box} [x, y, width, height] exceeds its {size} image",
                **where,
            )

    def _check_totals(
        self,
        per_category: Counter[int],
        crowds_per_category: Counter[int],
        categories: dict[int, str] | None,
    ) -> None:
        if not self.training:
            if not per_category:
                self.add("warning", "no_ground_truth", "no annotations: there will be no AP")
            return
        if not per_category:
            self.add("error", "nothing_to_learn", "no annotation of any listed image: no training")
            return
        if per_category == crowds_per_category:
            self.add(
                "error",
                "nothing_to_learn",
                "every annotation has iscrowd 1, and crowds are not trained on",
            )
            return
        for category, name in (categories or {}).items():
            shown = f"category {category} ({name!r})"
            if not per_category[category]:
                self.add("warning", "unused_category", f"{shown} has no annotation")
            elif per_category[category] == crowds_per_category[category]:
                self.add("warning", "crowd_only_category", f"{shown} has crowd annotations only")

    def _check_files(self, images: dict[int | str, _Image]) -> None:
        if not os.path.isdir(self.image_folder):
            self.add("error", "image_folder", f"image folder {self.image_folder} does not exist")
            return
        entries = {image.name: image for image in images.values() if image.name}
        read_headers = (
            self.read_headers
            if isinstance(self.read_headers, bool)
            else len(entries) <= self.read_headers
        )
        listings: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        missing = 0
        for name, image in entries.items():
            # As Detectron2 joins them: an absolute file_name stands for itself.
            path = os.path.join(self.image_folder, name)
            folder, base = os.path.split(path)
            if folder not in listings:
                listings[folder] = _list_files(folder)
            names, lower_case_names = listings[folder]
            if base not in names:
                # Whether the case matters is up to the file system: ask it, but only here.
                other_case = base.lower() in lower_case_names
                if not (other_case and os.path.isfile(path)):
                    missing += 1
                    hint = " (a file whose name differs in case does)" if other_case else ""
                    self.add("error", "missing_image", f"{path} does not exist{hint}", image=name)
                    continue
            if read_headers:
                self._check_header(path, image)
        if missing and missing == len(entries):
            self.add(
                "error",
                "image_folder",
                f"not one of the {missing} images is in {self.image_folder}: is it the right "
                "folder? (file_name in the json is relative to it)",
            )

    def _check_header(self, path: str, image: _Image) -> None:
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                # Detectron2 rotates on reading; orientations 5 to 8 swap the sides.
                if opened.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                    width, height = height, width
        except IMAGE_READ_ERRORS as error:
            self.add("error", "unreadable_image", f"cannot be opened: {error}", image=image.name)
            return
        if math.isnan(image.width) or (width, height) == (image.width, image.height):
            return
        self.add(
            "error",
            "image_size",
            f"the file has {width} x {height} pixels (after EXIF rotation), the json says "
            f"{image.width:g} x {image.height:g}",
            image=image.name,
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0


def _show(entry: dict[str, Any], key: str) -> str:
    return f"{entry[key]!r:.40}" if key in entry else "nothing"


def _ids(categories: Iterable[int]) -> str:
    ids = sorted(categories)
    shown = ", ".join(map(str, ids[:10]))
    return shown if len(ids) <= 10 else f"{shown}, ... {ids[-1]}"


def _list_files(folder: str) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the files in a folder, as they are and in lower case; empty if it has none.

    One listing instead of 100 000 single questions to the file system.
    """
    try:
        with os.scandir(folder) as entries:
            names = frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        names = frozenset()
    return names, frozenset(name.lower() for name in names)


def check_coco_json(
    json_file: str, image_folder: str, *, training: bool, read_headers: bool = False
) -> list[Problem]:
    """Check one COCO json and its images; nothing is raised for bad data.

    Args:
        json_file: path of the annotation file.
        image_folder: folder that the ``file_name`` entries are relative to.
        training: apply the rules for training data; without it, those for test data.
        read_headers: also open each image's header and compare its size with the json. The pixels
            are not decoded, so an image cut off after its header goes unnoticed.

    Returns:
        All problems, in the order of the file; empty if there are none.
    """
    check = _Check(
        os.fspath(json_file), os.fspath(image_folder), training, not training, read_headers
    )
    return check.run().problems


def format_report(problems: Sequence[Problem], *, max_per_kind: int | None = None) -> str:
    """A readable report: per json the errors first, grouped by kind, with exact counts.

    Args:
        problems: of any number of files.
        max_per_kind: lines shown per file, severity and kind; None = all.

    Returns:
        Text of several lines, without a final newline.
    """
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    files = list(dict.fromkeys(problem.json_file for problem in problems))
    for severity in ("error", "warning"):
        for problem in problems:
            if problem.severity == severity:
                key = (problem.json_file, problem.severity, problem.kind)
                groups.setdefault(key, []).append(problem)
    lines: list[str] = []
    for json_file in files:
        own = [problem for problem in problems if problem.json_file == json_file]
        num_errors = sum(problem.severity == "error" for problem in own)
        lines.append(f"{json_file}: {_counts(num_errors, len(own) - num_errors)}")
        for (group_file, severity, kind), members in groups.items():
            if group_file != json_file:
                continue
            lines.append(f"  {severity} {kind} ({len(members)})")
            shown = members if max_per_kind is None else members[:max_per_kind]
            lines.extend(f"    {problem}" for problem in shown)
            if len(shown) < len(members):
                lines.append(f"    ... and {len(members) - len(shown)} more")
    return "\n".join(lines)


def _counts(num_errors: int, num_warnings: int) -> str:
    return (
        f"{num_errors} error{'s' * (num_errors != 1)}, "
        f"{num_warnings} warning{'s' * (num_warnings != 1)}"
    )


def check_datasets(
    cfg: CfgNode,
    *,
    skip_train: bool = False,
    skip_test: bool = False,
    max_per_kind: int = 10,
    read_headers: bool | None = None,
) -> list[Problem]:
    """Check all data sets of a config that are in COCO format, before anything is trained.

    Sets of other formats (LVIS, VOC, ...) are passed over. With any problem the report is logged
    and written in full to ``OUTPUT_DIR/data_report.txt``; a report left by an earlier run is
    removed when there is none. Call it on every rank: all come to the same result, the main
    process writes.

    Args:
        cfg: resolved config, see :func:`yolof_d2.data.datasets.resolve_datasets`.
        skip_train: leave out ``DATASETS.TRAIN``, for evaluation only.
        skip_test: leave out ``DATASETS.TEST``.
        max_per_kind: lines per kind in the log and in the error.
        read_headers: open every image's header; None = for sets of at most
            ``HEADER_CHECK_MAX_IMAGES`` images.

    Returns:
        The warnings, if there are no errors.

    Raises:
        DataError: there is at least one error; its message holds the (shortened) report.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.utils import comm

    roles: dict[str, set[str]] = {}
    for role, names, skip in (
        ("train", cfg.DATASETS.TRAIN, skip_train),
        ("test", cfg.DATASETS.TEST, skip_test),
    ):
        for name in () if skip else names:
            roles.setdefault(name, set()).add(role)

    problems: list[Problem] = []
    for name, used_for in roles.items():
        if name not in DatasetCatalog:
            message = f"data set {name!r} is not registered (DATASETS.TRAIN / DATASETS.TEST)"
            problems.append(Problem("error", "not_registered", name, None, None, message))
            continue
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file is None or image_root is None or metadata.get("evaluator_type") != "coco":
            logger.info("Data set %s is not in COCO format and was not checked.", name)
            continue
        check = _Check(
            os.fspath(json_file),
            os.fspath(image_root),
            training="train" in used_for,
            evaluation="test" in used_for,
            read_headers=HEADER_CHECK_MAX_IMAGES if read_headers is None else read_headers,
        ).run()
        if check.num_categories not in (0, num_classes(cfg)):
            check.add(
                "error",
                "num_classes",
                f"{check.num_categories} categories, but MODEL.{num_classes_node(cfg)}.NUM_CLASSES "
                f"= {num_classes(cfg)}",
            )
        logger.info(
            "Data set %s (%s): %d images, %d of them without annotations; %d annotations, "
            "%d categories; %d problems",
            name,
            " and ".join(sorted(used_for, reverse=True)),
            check.num_images,
            check.num_empty_images,
            check.num_annotations,
            check.num_categories,
            len(check.problems),
        )
        problems += check.problems

    report_file = os.path.join(cfg.OUTPUT_DIR, REPORT_NAME)
    if comm.is_main_process():
        _write_report(report_file, problems)
    if not problems:
        return []
    num_errors = sum(problem.severity == "error" for problem in problems)
    counts = _counts(num_errors, len(problems) - num_errors)
    report = format_report(problems, max_per_kind=max_per_kind)
    if num_errors:
        raise DataError(f"The data cannot be used: {counts}. Whole report: {report_file}\n{report}")
    logger.warning("Data: %s. Whole report: %s\n%s", counts, report_file, report)
    return problems


def _write_report(path: str, problems: Sequence[Problem]) -> None:
    if not problems:
        if os.path.exists(path):
            os.remove(path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(format_report(problems) + "\n")
    os.replace(temporary, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print the report of one json.

    Args:
        arguments: as on the command line; None = ``sys.argv[1:]``.

    Returns:
        Exit code: 1 if there is any error, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m yolof_d2.data.validation",
        description="Check a COCO-format data set; exit code 1 if it has errors.",
    )
    parser.add_argument("json", help="COCO annotation file")
    parser.add_argument("images", help="folder that file_name in the json is relative to")
    parser.add_argument(
        "--headers", action="store_true", help="also open every image and compare its size"
    )
    parser.add_argument(
        "--use",
        choices=("train", "test"),
        help="apply only the rules for training or for test data (default: both)",
    )
    args = parser.parse_args(arguments)
    check = _Check(
        args.json,
        args.images,
        training=args.use != "test",
        evaluation=args.use != "train",
        read_headers=args.headers,
    ).run()
    if check.problems:
        sys.stdout.write(format_report(check.problems) + "\n")
    sys.stdout.write(
        f"{check.num_images} images ({check.num_empty_images} without annotations), "
        f"{check.num_annotations} annotations, {check.num_categories} categories: "
        f"{'no problems' if not check.problems else f'{len(check.problems)} problems'}\n"
    )
    return int(any(problem.severity == "error" for problem in check.problems))


if __name__ == "__main__":
    sys.exit(main())
