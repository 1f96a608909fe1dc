"""Build the augmentations of a config."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from yolof_d2.errors import ConfigError

from .color import ColorDistortion
from .crop import ClipBoxes, JitterCrop
from .resize import FixedSizeResize
from .shift import RandomShift


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """List the augmentations that are on, in the order in which they are applied.

    In training: crop (``INPUT.CROP``), jitter crop, resize, colour distortion, flip, shift. For
    tests: the resize alone. With every key of this project off, it is Detectron2's own list. The
    mosaic, which needs other images, is :class:`yolof_d2.data.MosaicMapper`.

    Args:
        cfg: ``INPUT.*`` is read.
        is_train: with the random augmentations.

    Raises:
        ConfigError: an impossible value; the message names the key.
    """
    # Detectron2's resize, and its flip in training.
    augmentations: list[T.Augmentation] = detection_utils.build_augmentation(cfg, is_train)
    fixed_size = cfg.INPUT.FIXED_SIZE
    if not is_train:
        if fixed_size.TEST:
            augmentations[0] = FixedSizeResize(fixed_size.TEST, key="INPUT.FIXED_SIZE.TEST")
        return augmentations

    if fixed_size.TRAIN:
        augmentations[0] = FixedSizeResize(fixed_size.TRAIN, fixed_size.SCALE_JITTER)
    elif tuple(fixed_size.SCALE_JITTER) != (1, 1):
        raise ConfigError(
            f"INPUT.FIXED_SIZE.SCALE_JITTER is {fixed_size.SCALE_JITTER}, but it scales "
            "INPUT.FIXED_SIZE.TRAIN, which is empty; set that one too, or leave both"
        )
    # "Not 0" and not "above 0", so that a negative value meets the check behind it.
    color = cfg.INPUT.COLOR_DISTORTION
    if color.PROB != 0:
        distortion = ColorDistortion(
            color.PROB,
            hue=color.HUE,
            saturation=color.SATURATION,
            exposure=color.EXPOSURE,
            image_format=cfg.INPUT.FORMAT,
        )
        augmentations.insert(1, distortion)
    if cfg.INPUT.JITTER_CROP.RATIO != 0:
        augmentations.insert(0, JitterCrop(cfg.INPUT.JITTER_CROP.RATIO))
    shift = RandomShift(cfg.INPUT.RANDOM_SHIFT.PROB, cfg.INPUT.RANDOM_SHIFT.MAX_PIXELS)
    if shift.enabled:
        augmentations.append(shift)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if shift.enabled:  # which may move the edge of the crop into the image
            augmentations.insert(1, ClipBoxes())
    return augmentations
