"""Evaluation: COCO's AP and AR of boxes, and which kinds of errors cost AP50."""

from .coco import COCOBoxEvaluator
from .error_types import ERROR_KINDS, ErrorAnalysis, analyse_errors

__all__ = ["ERROR_KINDS", "COCOBoxEvaluator", "ErrorAnalysis", "analyse_errors"]
