from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolof_d2.data import FixedSizeResize
from yolof_d2.errors import ConfigError


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 40), st.integers(1, 40))
def test_any_image_gets_the_size_whatever_its_aspect_ratio(height, width, new_height, new_width):
    image = np.full((height, width, 3), 7, np.uint8)
    transform = FixedSizeResize((new_height, new_width)).get_transform(image)
    assert transform.apply_image(image).shape == (new_height, new_width, 3)
    assert (transform.apply_image(image) == 7).all()
    corners = transform.apply_coords(np.array([[0, 0], [width, height]], dtype=float))
    np.testing.assert_allclose(corners, [[0, 0], [new_width, new_height]])


def test_one_factor_for_both_sides_from_the_whole_range():
    np.random.seed(0)
    image = np.zeros((3, 5, 3), np.uint8)
    augmentation = FixedSizeResize((100, 200), (0.8, 1.2))
    sizes = set()
    for _ in range(800):
        transform = augmentation.get_transform(image)
        sizes.add((transform.new_h, transform.new_w))
        assert abs(transform.new_w - 2 * transform.new_h) <= 1  # rounded each
    heights = {height for height, _ in sizes}
    assert heights == set(range(80, 121))


def test_the_factor_never_shrinks_a_side_to_nothing():
    transform = FixedSizeResize((1, 3), (0.01, 0.01)).get_transform(np.zeros((9, 9), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 1)


def test_without_jitter_no_random_number_is_drawn():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    FixedSizeResize((4, 4)).get_transform(np.zeros((5, 5), np.uint8))
    assert np.random.random() == expected


@pytest.mark.parametrize("size", [(), (640,), (1, 2, 3), (0, 5), (5, -1), (5.5, 5), ("a", "b")])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ConfigError, match=r"INPUT\.FIXED_SIZE\.TRAIN must be \(height, width\)"):
        FixedSizeResize(size)
    with pytest.raises(ConfigError, match=r"INPUT\.FIXED_SIZE\.TEST must be \(height, width\)"):
        FixedSizeResize(size, key="INPUT.FIXED_SIZE.TEST")


@pytest.mark.parametrize(
    "bounds", [(), (1.0,), (1.2, 0.8), (0, 1), (-1, 1), (1, float("inf")), (float("nan"), 1), "ab"]
)
def test_impossible_factors_are_refused(bounds):
    with pytest.raises(ConfigError, match=r"INPUT\.FIXED_SIZE\.SCALE_JITTER must be two numbers"):
        FixedSizeResize((4, 4), bounds)
