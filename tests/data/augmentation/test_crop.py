from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolof_d2.data import JitterCrop
from yolof_d2.data.augmentation import ClipBoxes
from yolof_d2.errors import ConfigError

SIDE = st.integers(1, 12)
SEED = st.integers(0, 2**32 - 1)
RATIO = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 0.999]), st.floats(0, 1, exclude_max=True))


def moved_sides(transform, height: int, width: int) -> list[int]:
    """Return by how much the left, top, right and bottom side moved inwards."""
    (corner,) = transform.apply_coords(np.zeros((1, 2)))
    new_height, new_width = transform.apply_image(np.zeros((height, width))).shape
    left, top = -corner
    return [int(v) for v in (left, top, width - left - new_width, height - top - new_height)]


@settings(deadline=None, max_examples=300)
@given(SIDE, SIDE, st.sampled_from([None, 1, 3]), RATIO, SEED)
def test_pixels_keep_their_place_and_padding_is_zero(height, width, channels, ratio, seed):
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.arange(1, np.prod(shape) + 1).reshape(shape)
    np.random.seed(seed)
    transform = JitterCrop(ratio).get_transform(image)
    result = transform.apply_image(image)
    left, top, right, bottom = moved_sides(transform, height, width)

    assert all(abs(side) <= ratio * width for side in (left, right))
    assert all(abs(side) <= ratio * height for side in (top, bottom))
    seen = 0
    for y in range(result.shape[0]):
        for x in range(result.shape[1]):
            inside = 0 <= y + top < height and 0 <= x + left < width
            seen += inside
            expected = image[y + top, x + left] if inside else np.zeros(shape[2:])
            assert np.array_equal(result[y, x], expected)
    assert seen >= 1
    if channels is None:
        np.testing.assert_array_equal(transform.apply_segmentation(image), result)
    np.testing.assert_array_equal(transform.apply_image(image), result)  # repeatable


@settings(deadline=None)
@given(st.data(), SEED)
def test_box_follows_its_pixels_and_comes_back(data, seed):
    height, width = 20, 15
    x0 = data.draw(st.integers(0, width - 1))
    y0 = data.draw(st.integers(0, height - 1))
    x1 = data.draw(st.integers(x0 + 1, width))
    y1 = data.draw(st.integers(y0 + 1, height))
    image = np.zeros((height, width), np.uint8)
    image[y0:y1, x0:x1] = 1
    np.random.seed(seed)
    transform = JitterCrop(0.6).get_transform(image)
    box = transform.apply_box(np.array([[x0, y0, x1, y1]], dtype=float))[0]
    rows, columns = np.nonzero(transform.apply_image(image))
    if len(rows) == 0:
        assert box[0] >= box[2] or box[1] >= box[3]
    else:
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == seen

    points = np.array([[x0, y0], [x1, y1]], dtype=float)
    moved = transform.apply_coords(points.copy())
    left, top, _, _ = moved_sides(transform, height, width)
    np.testing.assert_array_equal(moved, points - [left, top])  # not clipped
    np.testing.assert_array_equal(transform.inverse().apply_coords(moved), points)
    assert transform.inverse().apply_image(transform.apply_image(image)).shape == image.shape


def test_boxes_are_clipped_to_the_image_at_hand_and_nothing_else_changes():
    transform = ClipBoxes().get_transform(np.zeros((10, 20, 3), np.uint8))
    boxes = np.array([[-5, -5, 5, 5], [2, 3, 4, 5], [15, 5, 99, 99], [-9, 0, -1, 5]], np.float32)
    clipped = transform.apply_box(boxes)
    assert clipped.tolist() == [[0, 0, 5, 5], [2, 3, 4, 5], [15, 5, 20, 10], [0, 0, 0, 5]]
    assert clipped.dtype == np.float32
    assert transform.apply_box(np.zeros((0, 4))).shape == (0, 4)
    assert boxes[0, 0] == -5  # the input is left alone
    assert transform.apply_coords(boxes[:, :2]).tolist() == boxes[:, :2].tolist()
    image = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(transform.apply_image(image), image)
    np.testing.assert_array_equal(transform.inverse().apply_box(boxes), boxes)


def test_each_side_covers_its_whole_range_independently():
    np.random.seed(0)
    image = np.zeros((10, 20, 3), np.uint8)
    drawn = [moved_sides(JitterCrop(0.2).get_transform(image), 10, 20) for _ in range(2500)]
    reach = [4, 2, 4, 2]  # a fifth of 20, 10, 20, 10
    for first in range(4):
        for second in range(first):
            pairs = {(sides[first], sides[second]) for sides in drawn}
            expected = {
                (a, b)
                for a in range(-reach[first], reach[first] + 1)
                for b in range(-reach[second], reach[second] + 1)
            }
            assert pairs == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (3, 1), (3, 3)])
def test_tiny_images_do_not_move_below_one_pixel(size):
    for seed in range(20):
        np.random.seed(seed)
        assert moved_sides(JitterCrop(0.3).get_transform(np.zeros(size)), *size) == [0, 0, 0, 0]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ConfigError, match=r"INPUT\.JITTER_CROP\.RATIO must lie in \[0, 1\), got"):
        JitterCrop(ratio)
