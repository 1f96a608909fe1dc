"""Check data sets before training: ``python -m yolof_d2.data.validation JSON IMAGES``.

:mod:`.rules` lists what is checked.
"""

from .check import check_coco_json, check_datasets
from .report import REPORT_NAME, Problem, format_report

__all__ = ["REPORT_NAME", "Problem", "check_coco_json", "check_datasets", "format_report"]
