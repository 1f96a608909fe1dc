from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import TransformList
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small import default_cfg
from yolof_d2.data import ColorDistortion, FixedSizeResize, build_augmentation
from yolof_d2.errors import ConfigError

EVERYTHING = (
    *("INPUT.CROP.ENABLED", True),
    *("INPUT.CROP.TYPE", "relative_range"),
    *("INPUT.JITTER_CROP.RATIO", 0.3),
    *("INPUT.FIXED_SIZE.TRAIN", (96, 64)),
    *("INPUT.FIXED_SIZE.TEST", (32, 48)),
    *("INPUT.FIXED_SIZE.SCALE_JITTER", (0.8, 1.2)),
    *("INPUT.COLOR_DISTORTION.PROB", 0.5),
    *("INPUT.RANDOM_SHIFT.PROB", 0.5),
    *("INPUT.RANDOM_SHIFT.MAX_PIXELS", 16),
)


def names(augmentations: Sequence[T.Augmentation]) -> list[str]:
    return [type(augmentation).__name__ for augmentation in augmentations]


def apply(cfg: CfgNode, image: np.ndarray, seed: int) -> tuple[np.ndarray, TransformList]:
    np.random.seed(seed)
    augmented = T.AugInput(image)
    transforms = T.AugmentationList(build_augmentation(cfg, True))(augmented)
    return augmented.image, transforms


@pytest.mark.parametrize("is_train", [True, False])
def test_with_everything_off_it_is_detectron2s_list(is_train):
    ours = build_augmentation(default_cfg(), is_train)
    theirs = detection_utils.build_augmentation(default_cfg(), is_train)
    assert [vars(a) for a in ours] == [vars(a) for a in theirs]
    assert names(ours) == names(theirs)


def test_order_in_training():
    augmentations = build_augmentation(default_cfg(*EVERYTHING), True)
    assert names(augmentations) == [
        "RandomCrop",
        "ClipBoxes",
        "JitterCrop",
        "FixedSizeResize",
        "ColorDistortion",
        "RandomFlip",
        "RandomShift",
    ]
    _, _, jitter_crop, resize, color, flip, shift = augmentations
    assert jitter_crop.ratio == 0.3
    assert (resize.size, resize.scale_jitter) == ((96, 64), (0.8, 1.2))
    assert (color.prob, color.hue, color.saturation, color.exposure) == (0.5, 0.1, 1.5, 1.5)
    assert flip.horizontal
    assert (shift.prob, shift.max_pixels) == (0.5, 16)


def test_tests_get_the_resize_alone():
    (resize,) = build_augmentation(default_cfg(*EVERYTHING), False)
    assert isinstance(resize, FixedSizeResize)
    assert (resize.size, resize.scale_jitter) == ((32, 48), (1, 1))
    (resize,) = build_augmentation(default_cfg(*EVERYTHING, "INPUT.FIXED_SIZE.TEST", ()), False)
    assert isinstance(resize, T.ResizeShortestEdge)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("INPUT.JITTER_CROP.RATIO", 0.3), ["JitterCrop", "ResizeShortestEdge", "RandomFlip"]),
        (
            ("INPUT.COLOR_DISTORTION.PROB", 1.0),
            ["ResizeShortestEdge", "ColorDistortion", "RandomFlip"],
        ),
        (("INPUT.FIXED_SIZE.TRAIN", (8, 8)), ["FixedSizeResize", "RandomFlip"]),
        (("INPUT.RANDOM_SHIFT.PROB", 1.0), ["ResizeShortestEdge", "RandomFlip", "RandomShift"]),
        (
            ("INPUT.COLOR_DISTORTION.PROB", 1.0, "INPUT.RANDOM_FLIP", "none"),
            ["ResizeShortestEdge", "ColorDistortion"],
        ),
        (("INPUT.CROP.ENABLED", True), ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]),
        (
            ("INPUT.CROP.ENABLED", True, "INPUT.RANDOM_SHIFT.PROB", 1.0),
            ["RandomCrop", "ClipBoxes", "ResizeShortestEdge", "RandomFlip", "RandomShift"],
        ),
    ],
)
def test_each_works_without_the_others(overrides, expected):
    assert names(build_augmentation(default_cfg(*overrides), True)) == expected


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colours_are_read_in_the_order_of_the_config(image_format):
    cfg = default_cfg("INPUT.COLOR_DISTORTION.PROB", 1.0, "INPUT.FORMAT", image_format)
    (color,) = (a for a in build_augmentation(cfg, True) if isinstance(a, ColorDistortion))
    assert color.get_transform(np.zeros((1, 1, 3), np.uint8)).image_format == image_format


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.JITTER_CROP.RATIO", -0.3),
        ("INPUT.JITTER_CROP.RATIO", 1.0),
        ("INPUT.COLOR_DISTORTION.PROB", -1.0),
        ("INPUT.FIXED_SIZE.TRAIN", (640,)),
        ("INPUT.FIXED_SIZE.TEST", (0, 640)),
        ("INPUT.FIXED_SIZE.SCALE_JITTER", (1.2, 0.8)),
        ("INPUT.RANDOM_SHIFT.PROB", -0.5),
    ],
)
def test_impossible_values_name_their_key(key, value):
    with pytest.raises(ConfigError, match=key):
        build_augmentation(default_cfg(*EVERYTHING, key, value), is_train=not key.endswith("TEST"))


def test_a_scale_jitter_without_a_size_is_not_ignored_in_silence():
    cfg = default_cfg("INPUT.FIXED_SIZE.SCALE_JITTER", (0.8, 1.2))
    with pytest.raises(ConfigError, match=r"SCALE_JITTER is \(0\.8, 1\.2\), but .*TRAIN.*empty"):
        build_augmentation(cfg, True)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1), (3, 400), (700, 900)])
def test_the_same_seed_gives_the_same_image_and_a_drawn_list_can_be_repeated(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    cfg = default_cfg(*EVERYTHING)
    different = set()
    for seed in range(6):
        result, transforms = apply(cfg, image, seed)
        different.add(result.tobytes())
        np.testing.assert_array_equal(apply(cfg, image, seed)[0], result)
        for copy in (transforms, pickle.loads(pickle.dumps(transforms))):
            np.testing.assert_array_equal(copy.apply_image(image), result)
            np.testing.assert_array_equal(copy.apply_image(image), result)
        for count in (0, 200):
            boxes = np.tile([[0.0, 0.0, size[1], size[0]]], (count, 1))
            moved = transforms.apply_box(boxes)
            assert moved.shape == (count, 4) and np.isfinite(moved).all()
    assert len(different) > 1


@settings(deadline=None, max_examples=200)
@given(
    st.data(),
    st.sampled_from([EVERYTHING, EVERYTHING[4:], EVERYTHING[:4] + EVERYTHING[6:]]),
    st.integers(0, 2**32 - 1),
)
def test_a_painted_box_is_found_where_the_transformed_box_says(data, overrides, seed):
    """Holds also where a crop cut the object and padding or a shift followed."""
    height, width = 120, 100
    x0 = data.draw(st.integers(0, width - 1))
    y0 = data.draw(st.integers(0, height - 1))
    x1 = data.draw(st.integers(x0 + 1, width))
    y1 = data.draw(st.integers(y0 + 1, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = (150, 60, 10)  # no exposure makes it exceed 255
    result, transforms = apply(default_cfg(*overrides), image, seed)
    box = transforms.apply_box(np.array([[x0, y0, x1, y1]], dtype=float))[0]
    clipped = np.clip(box, 0, result.shape[1::-1] * 2)
    brightness = result.max(axis=2)
    rows, columns = np.nonzero(brightness)
    if len(rows) == 0:
        assert (clipped[2:] - clipped[:2]).min() < 1
        return
    # All that is seen lies in the box, within a pixel and the blur of the resize at its edges.
    touched = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (np.abs(np.array(touched) - clipped) <= 2.5).all()
    if (clipped[2:] - clipped[:2]).min() >= 4:  # the edge is where half the brightness is
        rows, columns = np.nonzero(brightness > brightness.max() / 2)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(edges, clipped, atol=1)
