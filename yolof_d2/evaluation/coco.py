"""COCO's evaluation of boxes, through the C++ of ``faster-coco-eval``."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table
from faster_coco_eval import COCOeval_faster

from yolof_d2.errors import DataError
from yolof_d2.files import write_text

from .error_types import analyse_errors

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_AR = ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator for boxes, with average recall and an error analysis.

    Files, tables in the log and the handling of ranks are Detectron2's. :meth:`evaluate` returns,
    all in percent:

    - ``bbox``: COCO's twelve numbers, AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm,
      ARl (NaN where there is no such object, and all of them if nothing at all was detected), then
      ``AP-<class>`` if there are several classes.
    - ``errors``: AP50 gained by fixing each error type, see
      :func:`~yolof_d2.evaluation.analyse_errors`.

    AR is that of pycocotools to the last bit. AP differs from it in that bit: pycocotools adds
    2.2e-16 to the number of detections when it divides by it, so that its precision after one
    detection, a correct one, is 1 - 2.2e-16.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        """Files go to ``output_dir``, which may be left out for a data set in COCO format."""
        super().__init__(dataset_name, tasks=("bbox",), output_dir=output_dir, use_fast_impl=False)

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Collection[int] | None = None
    ) -> None:
        """Save detections, evaluate them, and fill ``self._results``."""
        # Detectron2's method chooses between two implementations of its own, so it is restated.
        detections = self._with_dataset_categories(
            [detection for image in predictions for detection in image["instances"]]
        )
        if self._output_dir:
            path = Path(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            write_text(path, json.dumps(detections), durable=False)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return

        self._logger.info("Evaluating predictions with faster-coco-eval...")
        coco_eval = None  # what Detectron2 has for no detections
        if detections:
            found = self._coco_api.loadRes(detections)
            quiet = {"print_function": lambda *_: None}
            coco_eval = COCOeval_faster(self._coco_api, found, "bbox", **quiet)
            coco_eval.params.maxDets = self._max_dets_per_image
            if img_ids is not None:
                coco_eval.params.imgIds = list(img_ids)
            coco_eval.run()
        self._results["bbox"] = self._derive_coco_results(
            coco_eval, "bbox", class_names=self._metadata.get("thing_classes")
        )

        errors = analyse_errors(self._coco_api.dataset, detections, image_ids=img_ids).gains
        self._logger.info("AP50 gained by fixing each error type: \n%s", create_small_table(errors))
        self._results["errors"] = errors

    def _with_dataset_categories(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return detections with category ids of the data set in place of class numbers."""
        to_class = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_class is None:
            return detections
        to_category = {number: category for category, number in to_class.items()}
        unknown = {found["category_id"] for found in detections} - set(to_category)
        if unknown:
            raise DataError(
                f"A detection is of class {max(unknown)}, but data set {self._metadata.name} has "
                f"{len(to_category)} classes: the model was trained for others"
            )
        return [{**d, "category_id": to_category[d["category_id"]]} for d in detections]

    def _derive_coco_results(
        self, coco_eval: COCOeval_faster | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        """Add average recall to Detectron2's results and tables, behind the six kinds of AP."""
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        recalls = dict.fromkeys(_AR, float("nan"))
        if coco_eval is not None:
            for name, value in zip(_AR, coco_eval.stats[len(_AP) :], strict=True):
                recalls[name] = float(value * 100 if value >= 0 else "nan")
            self._logger.info("Average recall for %s: \n%s", iou_type, create_small_table(recalls))
        return {**{name: results.pop(name) for name in _AP}, **recalls, **results}
