from __future__ import annotations

from tests.data.validation.good import check, many_faults
from yolof_d2.data.validation import format_report


def test_all_problems_are_in_one_report_with_exact_counts(folder):
    problems = check(folder, many_faults())
    assert {p.kind for p in problems} == {
        "unknown_category",
        "empty_box",
        "missing_image",
        "unused_category",
    }
    short = format_report(problems, max_per_kind=10)
    assert "48 errors, 2 warnings" in short
    assert "error unknown_category (47)" in short and "... and 37 more" in short
    assert short.count("category_id 9") == 10
    assert short.index("missing_image") < short.index("empty_box")  # errors first
    assert "image 'a.png', annotation 12: bbox [1, 2, 0, 0] has no size" in short
    whole = format_report(problems)
    assert whole.count("category_id 9") == 47 and "more" not in whole
