from __future__ import annotations

import colorsys

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from fvcore.transforms.transform import NoOpTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from yolof_d2.data import ColorDistortion, ColorDistortionTransform
from yolof_d2.errors import ConfigError

# Extremes and equal channels are common, where hue has its seams.
LEVEL = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 127, 254, 255]))
FACTOR = st.one_of(st.floats(0, 3), st.just(1.0))
FORMAT = st.sampled_from(["RGB", "BGR"])


def distort_by_loop(rgb: list[int], hue: float, saturation: float, exposure: float) -> list[float]:
    """One pixel in float64, not rounded."""
    h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in rgb))
    distorted = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), min(v * exposure, 1))
    return [255 * level for level in distorted]


def make_transform(hue=0.0, saturation=1.0, exposure=1.0, image_format="RGB"):
    return ColorDistortionTransform(hue, saturation, exposure, image_format=image_format)


def make_augmentation(**options) -> ColorDistortion:
    defaults = {"prob": 1.0, "hue": 0.1, "saturation": 1.5, "exposure": 1.5, "image_format": "BGR"}
    return ColorDistortion(**{**defaults, **options})


@settings(deadline=None, max_examples=300)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(3)), elements=LEVEL
    ),
    st.floats(-1, 1),
    FACTOR,
    FACTOR,
    FORMAT,
)
def test_agrees_with_the_standard_library_in_either_channel_order(
    image, hue, saturation, exposure, image_format
):
    before = image.copy()
    transform = make_transform(hue, saturation, exposure, image_format)
    result = transform.apply_image(image)
    assert result.dtype == np.uint8 and result.shape == image.shape
    np.testing.assert_array_equal(image, before)  # the input is left alone
    np.testing.assert_array_equal(transform.apply_image(image), result)
    step = 1 if image_format == "RGB" else -1
    for y, x in np.ndindex(image.shape[:2]):
        expected = distort_by_loop(image[y, x, ::step].tolist(), hue, saturation, exposure)
        # Rounded to the nearest, with room for float32.
        np.testing.assert_allclose(result[y, x, ::step].astype(float), expected, atol=0.5 + 2e-3)


@pytest.mark.parametrize("width", [1, 18, 18**3])  # many rows, some, one
def test_colours_from_all_over_the_cube_agree_with_the_standard_library(width):
    levels = np.arange(0, 256, 15)
    image = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, width, 3)
    result = make_transform(-0.07, 1.4, 0.8).apply_image(image.astype(np.uint8))
    expected = [distort_by_loop(pixel, -0.07, 1.4, 0.8) for pixel in image.reshape(-1, 3).tolist()]
    np.testing.assert_allclose(result.reshape(-1, 3).astype(float), expected, atol=0.5 + 2e-3)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (2, 2, 3), elements=LEVEL), FORMAT, st.sampled_from([-1, 0, 1]))
def test_no_distortion_and_whole_turns_change_nothing(image, image_format, turns):
    transform = make_transform(float(turns), 1.0, 1.0, image_format)
    np.testing.assert_array_equal(transform.apply_image(image), image)


def test_coordinates_and_labels_are_left_alone():
    transform = make_transform(0.3, 2.0, 2.0)
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(transform.apply_box(boxes), boxes)
    np.testing.assert_array_equal(transform.inverse().apply_box(boxes), boxes)
    labels = np.array([[0, 7], [255, 1]], np.uint8)
    np.testing.assert_array_equal(transform.apply_segmentation(labels), labels)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 1), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
    ],
    ids=str,
)
def test_images_without_known_colours_are_refused(image):
    with pytest.raises(ValueError, match=r"expected a colour image, uint8 \(H, W, 3\), got"):
        make_transform().apply_image(image)


def test_draws_cover_the_ranges_as_in_darknet():
    np.random.seed(0)
    augmentation = make_augmentation(hue=0.1, saturation=1.5, exposure=3.0)
    image = np.zeros((1, 1, 3), np.uint8)
    drawn = [augmentation.get_transform(image) for _ in range(4000)]
    hues = np.array([t.hue for t in drawn])
    assert -0.1 <= hues.min() < -0.098 and 0.098 < hues.max() <= 0.1
    assert abs(hues.mean()) < 4 * 0.1 / 3**0.5 / 4000**0.5  # 4 standard deviations
    for name, largest in (("saturation", 1.5), ("exposure", 3.0)):
        factors = np.array([getattr(t, name) for t in drawn])
        assert 1 / largest <= factors.min() < 1.02 / largest
        assert 0.98 * largest < factors.max() <= largest
        up = factors[factors > 1]
        down = 1 / factors[factors < 1]
        assert abs(len(up) / 4000 - 0.5) < 0.032  # 4 standard deviations
        for part in (up, down):  # both uniform in [1, largest]
            deviation = (largest - 1) / 12**0.5 / len(part) ** 0.5
            assert abs(part.mean() - (1 + largest) / 2) < 4 * deviation
    values = np.array([(t.hue, t.saturation, t.exposure) for t in drawn])
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.07  # drawn independently


def test_probability_is_kept():
    image = np.zeros((1, 1, 3), np.uint8)
    augmentation = make_augmentation(prob=0.3)
    np.random.seed(5)
    drawn = [augmentation.get_transform(image) for _ in range(2000)]
    distorted = sum(not isinstance(t, NoOpTransform) for t in drawn)
    assert abs(distorted / 2000 - 0.3) < 0.041  # 4 standard deviations
    np.random.seed(5)
    always = make_augmentation(prob=1.0)
    assert not any(isinstance(always.get_transform(image), NoOpTransform) for _ in range(50))


@pytest.mark.parametrize(
    ("option", "value", "key"),
    [
        ("prob", -0.1, "INPUT.COLOR_DISTORTION.PROB"),
        ("prob", 1.1, "INPUT.COLOR_DISTORTION.PROB"),
        ("hue", -0.1, "INPUT.COLOR_DISTORTION.HUE"),
        ("hue", 0.6, "INPUT.COLOR_DISTORTION.HUE"),
        ("saturation", 0.9, "INPUT.COLOR_DISTORTION.SATURATION"),
        ("exposure", 0.9, "INPUT.COLOR_DISTORTION.EXPOSURE"),
        ("exposure", float("inf"), "INPUT.COLOR_DISTORTION.EXPOSURE"),
        ("image_format", "L", "INPUT.FORMAT"),
        ("image_format", "YUV-BT.601", "INPUT.FORMAT"),
    ],
)
def test_impossible_values_are_refused(option, value, key):
    with pytest.raises(ConfigError, match=rf"{key} must .*got"):
        make_augmentation(**{option: value})
