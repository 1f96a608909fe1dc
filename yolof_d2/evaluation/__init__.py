"""Evaluation: COCO's AP and AR of boxes, and the AP50 that each error type costs."""

from .coco import COCOBoxEvaluator
from .error_types import ERROR_KINDS, ErrorAnalysis, analyse_errors

__all__ = ["ERROR_KINDS", "COCOBoxEvaluator", "ErrorAnalysis", "analyse_errors"]
