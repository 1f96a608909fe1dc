from __future__ import annotations

import math

import pytest

from yolof_d2.checks import check_at_least, check_range, check_size, require
from yolof_d2.errors import ConfigError


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require(False, "A.B", "be odd", "2"), "A.B must be odd, got '2'"),
        (lambda: check_at_least(1, "A", B=1, C=0), "A.C must be 1 or more, got 0"),
        (lambda: check_size("A", (3,)), "A must be (height, width), two whole .*, got (3,)"),
        (lambda: check_size("A", (3, 0)), "got (3, 0)"),
        (lambda: check_size("A", (3, 4.0)), "got (3, 4.0)"),
        (lambda: check_range("A", (0.5, 1.0), below=1), "A must be .* below 1, got (0.5, 1.0)"),
        (lambda: check_range("A", (2, 1), below=9), "got (2, 1)"),
        (lambda: check_range("A", (0, 1), below=9), "got (0, 1)"),
        (lambda: check_range("A", (1, "2"), below=9), "got (1, '2')"),
    ],
)
def test_the_message_has_key_expected_and_got(check, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
        check()


def test_what_is_right_is_returned():
    check_at_least(1, "A", B=1, C=2)
    assert check_size("A", [3, 4]) == (3, 4)
    assert check_range("A", [0.5, 2], below=math.inf) == (0.5, 2)
    assert check_range("A", (1, 1), below=2) == (1, 1)
