"""Print the figures of TIDE's own code for TIDE_CASES, which test_error_types.py holds.

In an environment of their own: ``pip install tidecv==1.0.1``, then, from the repository's root,
``python -m tests.evaluation.tide``.
"""

from __future__ import annotations

import json

from tests.evaluation.cases import COCO128, Case, perturbed_case, random_case

NAMES = {
    "ClassError": "classification",
    "BoxError": "localisation",
    "OtherError": "both",
    "DuplicateError": "duplicate",
    "BackgroundError": "background",
    "MissedError": "missed",
}


def random_tide_case() -> Case:
    """Return a case without crowds, and without detections of a class that has no objects."""
    ground_truth, detections = random_case(6, crowds=False, ties=False)
    classes = {annotation["category_id"] for annotation in ground_truth["annotations"]}
    return ground_truth, [found for found in detections if found["category_id"] in classes]


TIDE_CASES = {"random": random_tide_case, "coco128": lambda: perturbed_case(COCO128, seed=0)}


def tide_figures(case: Case) -> dict[str, tuple[float, int]]:
    """AP50 points and number of errors, by kind; and AP50 with the number of detections."""
    from tidecv import TIDE, Data

    ground_truth, detections = case
    truth, found = Data("truth"), Data("found")
    for image in ground_truth["images"]:
        truth.add_image(image["id"], str(image["id"]))
    for annotation in ground_truth["annotations"]:
        add = truth.add_ignore_region if annotation["iscrowd"] else truth.add_ground_truth
        add(annotation["image_id"], annotation["category_id"], annotation["bbox"])
    for d in detections:
        found.add_detection(d["image_id"], d["category_id"], d["score"], d["bbox"])
    run = TIDE().evaluate(truth, found, mode=TIDE.BOX)
    counts = run.count_errors()
    figures = {
        NAMES[kind.__name__]: (float(gain), counts[kind])
        for kind, gain in run.fix_main_errors().items()
    }
    return {"AP50": (float(run.ap), len(detections)), **figures}


if __name__ == "__main__":
    for name, make in TIDE_CASES.items():
        print(f"{name}: {json.dumps(tide_figures(make()))}")  # noqa: T201
