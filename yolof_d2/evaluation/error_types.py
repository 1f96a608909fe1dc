"""AP50 gained by fixing each type of error, in the manner of TIDE (Bolya et al., ECCV 2020).

Every false detection has one type, and so has every object that was not found. Each type is fixed
alone, with all other errors in place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from yolof_d2.errors import DataError

ERROR_KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")

FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1
MAX_DETECTIONS = 100  # of an image and class, as in COCO

_RECALLS = np.linspace(0, 1, 101)

# Kind of a detection: its index in ERROR_KINDS, or no error.
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_CORRECT, _IGNORED = -1, -2

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]
_Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ErrorAnalysis:
    """Result of :func:`analyse_errors`; the keys of both dicts are :data:`ERROR_KINDS`.

    Attributes:
        ap50: COCO's, in percent; NaN without any object.
        gains: AP50 gained by fixing this error type, in percent.
        counts: number of detections; for ``missed`` of objects.
    """

    ap50: float
    gains: dict[str, float]
    counts: dict[str, int]


def analyse_errors(
    ground_truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    *,
    image_ids: Collection[int] | None = None,
) -> ErrorAnalysis:
    """Sort the errors of a detector into six types, and measure the AP50 that each costs.

    Matching is COCO's at IoU 0.5: the 100 best detections of an image and class, in the order of
    their scores, take the free object of their class that they overlap most; others that lie in a
    crowd of their class are ignored. Any other detection is an error, of the first type that fits
    (crowds are no objects here):

    ================  ====================================================  ========================
    type              definition                                            fix
    ================  ====================================================  ========================
    localisation      its best IoU with an object of its class is in        correct the box
                      [0.1, 0.5)
    classification    its best IoU with an object of another class is 0.5   correct the class
                      or more
    duplicate         its best IoU with an object of its class is 0.5 or    remove it
                      more: a better detection has that object
    background        no IoU with any object is above 0.1                   remove it
    both              what is left: its best IoU with an object of another  remove it
                      class is in (0.1, 0.5)
    missed            an object that no detection found, and to which no    remove the object
                      error of the first two types belongs
    ================  ====================================================  ========================

    A corrected detection keeps its score. Only one can be correct for an object: of all errors of
    the first two types that belong to the object, the one with the highest score. The others, and
    those whose object has been found, are removed. Removing missed objects stretches recall; a
    class that has no object left leaves the mean, as COCO leaves out a class without objects.

    The gains do not add up to 100 - AP50. A loss, possible because COCO samples precision at 101
    recalls, counts as 0, as in TIDE.

    TIDE's code (``tidecv`` 1.0.1) gives the same, except that there

    - a class with detections but without objects, also after missed objects were removed, counts
      with AP 0, so that AP50 is not COCO's; here it does not count;
    - detections ignored in a crowd have a type too, and fixing may make them correct;
      a crowd must cover more than half of a detection, here half or more;
    - the limit of 100 detections is for an image, here for an image and class; Detectron2's limit
      (``TEST.DETECTIONS_PER_IMAGE``) is for an image as well, and makes the two equal;
    - at equal scores, fixed detections come before correct ones, here they keep COCO's order;
    - a duplicate with an IoU of exactly 0.5 counts as localisation; both types remove it;
    - the 101 recalls are rounded otherwise than COCO's, so that precision may be sampled one
      detection further on (up to a tenth of a point on small data sets).

    Args:
        ground_truth: COCO's ``images``, ``annotations`` and ``categories``.
        detections: ``image_id``, ``category_id``, ``bbox`` (XYWH, pixels) and ``score`` of each, as
            in ``coco_instances_results.json``.
        image_ids: only these images count; None for all.

    Returns:
        The gain of ``missed`` is NaN if all objects are missed, as no AP is left then. If nothing
        was detected, AP50 and the other gains are 0. Without any object, AP50 and all gains are
        NaN.

    Raises:
        DataError: a detection is of an image that is not in the ground truth.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strange = {detection["image_id"] for detection in detections} - known
    if strange:
        raise DataError(
            f"A detection is of image {min(strange)}, which is not in the ground truth; detections "
            "and ground truth must be of the same images"
        )
    images = sorted(known if image_ids is None else known.intersection(image_ids))
    categories = sorted({category["id"] for category in ground_truth["categories"]})
    objects = _read_boxes(ground_truth["annotations"], images, categories)
    objects = objects[np.argsort(objects.image, kind="stable")]
    found = _best_detections(_read_boxes(detections, images, categories))

    kind, target = _judge(found, objects)
    fixable = _choose_fixable(kind, target)
    missed = ~objects.crowd
    missed[target[(kind == _CORRECT) | fixable]] = False

    num_objects = np.bincount(objects.category[~objects.crowd], minlength=len(categories))
    num_missed = np.bincount(objects.category[missed], minlength=len(categories))
    counted = found[kind != _IGNORED], kind[kind != _IGNORED] == _CORRECT
    ap50 = _average_precision(*counted, num_objects)
    fixed_ap50 = [
        _average_precision(*_fix(error, found, objects, kind, target, fixable), num_objects)
        for error in range(_BACKGROUND + 1)
    ]
    fixed_ap50.append(_average_precision(*counted, num_objects - num_missed))
    counts = [*np.bincount(kind[kind >= 0], minlength=_BACKGROUND + 1), missed.sum()]
    return ErrorAnalysis(
        ap50=ap50,
        gains={
            name: float(np.maximum(fixed - ap50, 0))  # NaN stays
            for name, fixed in zip(ERROR_KINDS, fixed_ap50, strict=True)
        },
        counts={name: int(count) for name, count in zip(ERROR_KINDS, counts, strict=True)},
    )


@dataclass(frozen=True)
class _Boxes:
    """N boxes: ``image`` and ``category`` (N,) are indices, ``xywh`` (N, 4) is in pixels."""

    image: _Ints
    category: _Ints
    xywh: _Floats
    score: _Floats
    crowd: _Bools

    def __getitem__(self, rows: _Ints | _Bools) -> _Boxes:
        return _Boxes(*(getattr(self, field.name)[rows] for field in fields(self)))


def _read_boxes(
    entries: Sequence[dict[str, Any]], images: list[int], categories: list[int]
) -> _Boxes:
    """Read annotations or detections; those of other images or categories are left out."""
    image_index = {image: index for index, image in enumerate(images)}
    category_index = {category: index for index, category in enumerate(categories)}
    known = (e for e in entries if e["image_id"] in image_index)
    boxes = [e for e in known if e["category_id"] in category_index]
    return _Boxes(
        image=np.array([image_index[box["image_id"]] for box in boxes], dtype=np.int64),
        category=np.array([category_index[box["category_id"]] for box in boxes], dtype=np.int64),
        xywh=np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4),
        score=np.array([box.get("score", 0) for box in boxes], dtype=np.float64),
        crowd=np.array([box.get("iscrowd", 0) for box in boxes], dtype=np.bool_),
    )


def _best_detections(boxes: _Boxes) -> _Boxes:
    """Sort by image, then by descending score, and drop what is beyond the limit."""
    boxes = boxes[np.lexsort((-boxes.score, boxes.image))]
    groups = np.lexsort((boxes.category, boxes.image))  # stable: by score within a group
    pairs = np.stack((boxes.image, boxes.category))[:, groups]
    starts = np.flatnonzero(np.any(np.diff(pairs, prepend=-1), axis=0))
    sizes = np.diff(starts, append=len(groups))
    rank = np.arange(len(groups)) - np.repeat(starts, sizes)
    return boxes[np.sort(groups[rank < MAX_DETECTIONS])]


def _judge(found: _Boxes, objects: _Boxes) -> tuple[_Ints, _Ints]:
    """Return the kind of each detection, and the object that it belongs to.

    Args:
        found: sorted by image, then by descending score.
        objects: sorted by image; crowds among them.

    Returns:
        Kind (D,), and index of the object (D,) that a correct detection has, or that a wrong class
        or box is for; -1 for all others.
    """
    kind = np.full(len(found.image), _BACKGROUND)
    target = np.full(len(found.image), -1)
    for image in np.intersect1d(found.image, objects.image):
        rows, columns = (
            slice(*np.searchsorted(boxes.image, (image, image + 1))) for boxes in (found, objects)
        )
        kind[rows], own = _judge_image(
            mask.iou(found.xywh[rows], objects.xywh[columns], objects.crowd[columns]),
            found.category[rows, None] == objects.category[columns],
            objects.crowd[columns],
        )
        target[rows] = np.where(own >= 0, own + columns.start, -1)
    return kind, target


def _judge_image(overlaps: _Floats, same_class: _Bools, crowd: _Bools) -> tuple[_Ints, _Ints]:
    """:func:`_judge` for one image, from IoU (D, G), same class (D, G) and crowd (G,)."""
    own = np.where(same_class & ~crowd, overlaps, 0)
    other = np.where(same_class | crowd, 0, overlaps)
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    partner = _match(own)
    in_crowd = (same_class & crowd & (overlaps >= FOREGROUND_IOU)).any(axis=1)
    kind = np.select(
        [
            partner >= 0,
            in_crowd,
            (best_own >= BACKGROUND_IOU) & (best_own < FOREGROUND_IOU),
            best_other >= FOREGROUND_IOU,
            best_own >= FOREGROUND_IOU,
            best_other <= BACKGROUND_IOU,
        ],
        [_CORRECT, _IGNORED, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        default=_BOTH,
    )
    target = np.select(
        [kind == _CORRECT, kind == _LOCALISATION, kind == _CLASSIFICATION],
        [partner, own.argmax(axis=1), other.argmax(axis=1)],
        default=-1,
    )
    return kind, target


def _match(overlaps: _Floats) -> _Ints:
    """Give each detection the free object that it overlaps most, if it does enough.

    Args:
        overlaps: (D, G), by descending score.

    Returns:
        Index of the object (D,), or -1.
    """
    overlaps = overlaps[:, ::-1].copy()  # of two equal ones COCO takes the last
    partner = np.full(len(overlaps), -1)
    for row in np.flatnonzero((overlaps >= FOREGROUND_IOU).any(axis=1)):
        best = overlaps[row].argmax()
        if overlaps[row, best] >= FOREGROUND_IOU:
            partner[row] = overlaps.shape[1] - 1 - best
            overlaps[:, best] = 0
    return partner


def _choose_fixable(kind: _Ints, target: _Ints) -> _Bools:
    """Return (D,) whether to fix a detection: the best that belongs to an object not found."""
    candidates = np.flatnonzero((kind == _LOCALISATION) | (kind == _CLASSIFICATION))
    candidates = candidates[~np.isin(target[candidates], target[kind == _CORRECT])]
    # An object is of one image, and detections of an image are in the order of their scores.
    _, first = np.unique(target[candidates], return_index=True)
    fixable = np.zeros(len(kind), dtype=np.bool_)
    fixable[candidates[first]] = True
    return fixable


def _fix(
    error: int, found: _Boxes, objects: _Boxes, kind: _Ints, target: _Ints, fixable: _Bools
) -> tuple[_Boxes, _Bools]:
    """Fix the errors of a type; return the detections that then count, and which are correct."""
    fixed = fixable & (kind == error)
    category = found.category.copy()
    category[fixed] = objects.category[target[fixed]]
    kept = (kind != _IGNORED) & ((kind != error) | fixed)
    return replace(found, category=category)[kept], ((kind == _CORRECT) | fixed)[kept]


def _average_precision(found: _Boxes, correct: _Bools, num_objects: _Ints) -> float:
    """COCO's AP at one IoU, in percent; NaN without objects.

    Args:
        found: D detections, sorted by image, which decides between equal scores.
        correct: (D,).
        num_objects: of each category; those without any do not count.
    """
    order = np.argsort(-found.score, kind="stable")
    category, correct = found.category[order], correct[order]
    sampled = []
    for index in np.flatnonzero(num_objects):
        hits = np.cumsum(correct[category == index])
        # pycocotools divides by this, to be safe from 0; without it the last bit is another.
        precision = hits / (np.arange(1, len(hits) + 1) + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        position = np.searchsorted(hits / num_objects[index], _RECALLS)
        sampled.append(np.append(envelope, 0)[position])
    return float(np.mean(np.stack(sampled, axis=1)) * 100) if sampled else float("nan")
