from __future__ import annotations

import numpy as np
import pytest
from fvcore.transforms.transform import NoOpTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from yolof_d2.data.augmentation import RandomShift, ShiftTransform
from yolof_d2.errors import ConfigError

SIDE = st.integers(1, 9)
SHIFT = st.integers(-12, 12)  # reaches beyond the image


def shift_by_loop(image: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Pixel by pixel: every pixel goes dx to the right and dy down, if that is in the image."""
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                result[y + dy, x + dx] = image[y, x]
    return result


@settings(deadline=None)
@given(
    SIDE,
    SIDE,
    st.sampled_from([None, 1, 3, 4]),
    SHIFT,
    SHIFT,
    st.sampled_from(["uint8", "int32", "float32", "float64", "bool"]),
)
def test_image_agrees_with_pixel_loop(height, width, channels, dx, dy, dtype):
    shape = (height, width) if channels is None else (height, width, channels)
    image = (np.arange(np.prod(shape)) % 250 + 1).reshape(shape).astype(dtype)
    before = image.copy()
    shifted = ShiftTransform(dx, dy).apply_image(image)
    assert shifted.dtype == image.dtype
    np.testing.assert_array_equal(shifted, shift_by_loop(image, dx, dy))
    np.testing.assert_array_equal(image, before)  # the input is left alone
    assert not np.shares_memory(shifted, image)
    if channels is None:
        np.testing.assert_array_equal(ShiftTransform(dx, dy).apply_segmentation(image), shifted)


@settings(deadline=None)
@given(SIDE, SIDE, SHIFT, SHIFT)
def test_inverse_restores_what_stayed_in_the_image(height, width, dx, dy):
    image = np.arange(1, height * width + 1).reshape(height, width)
    transform = ShiftTransform(dx, dy)
    back = transform.inverse().apply_image(transform.apply_image(image))
    expected = shift_by_loop(shift_by_loop(image, dx, dy), -dx, -dy)
    np.testing.assert_array_equal(back, expected)

    coords = np.array([[0.0, 0.0], [-3.5, 100.25], [width, height]])
    moved = transform.apply_coords(coords)
    np.testing.assert_array_equal(moved, [[x + dx, y + dy] for x, y in coords])
    np.testing.assert_array_equal(transform.inverse().apply_coords(moved), coords)


def test_coordinates_keep_float_dtype_and_accept_integers_and_none():
    transform = ShiftTransform(2, -3)
    assert transform.apply_coords(np.zeros((4, 2), np.float32)).dtype == np.float32
    assert transform.apply_coords(np.array([[1, 1]])).tolist() == [[3.0, -2.0]]
    assert transform.apply_coords(np.zeros((0, 2))).shape == (0, 2)
    assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)


def test_batched_images_are_refused():
    with pytest.raises(ValueError, match="shape"):
        ShiftTransform(1, 1).apply_image(np.zeros((2, 4, 4, 3)))


def test_draws_cover_the_published_range_and_no_more():
    np.random.seed(0)
    augmentation = RandomShift(prob=1.0, max_pixels=2)
    image = np.zeros((4, 4, 3), np.uint8)
    drawn = {(t.dx, t.dy) for t in (augmentation.get_transform(image) for _ in range(2000))}
    assert drawn == {(dx, dy) for dx in (-2, -1, 0, 1) for dy in (-2, -1, 0, 1)}


def test_probability_is_kept():
    np.random.seed(0)
    augmentation = RandomShift(prob=0.3, max_pixels=4)
    image = np.zeros((4, 4, 3), np.uint8)
    shifts = sum(isinstance(augmentation.get_transform(image), ShiftTransform) for _ in range(4000))
    assert abs(shifts / 4000 - 0.3) < 0.03  # 4 standard deviations


@pytest.mark.parametrize(("prob", "max_pixels"), [(0.0, 32), (1.0, 0), (0.0, 0)])
def test_off_is_off_and_draws_no_random_number(prob, max_pixels):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    transform = RandomShift(prob, max_pixels).get_transform(np.zeros((5, 5), np.uint8))
    assert isinstance(transform, NoOpTransform)
    assert np.random.random() == expected


@pytest.mark.parametrize(("prob", "max_pixels"), [(-0.1, 32), (1.1, 32), (0.5, -1), (0.5, 1.5)])
def test_impossible_values_are_refused(prob, max_pixels):
    with pytest.raises(ConfigError, match="RANDOM_SHIFT"):
        RandomShift(prob, max_pixels)
