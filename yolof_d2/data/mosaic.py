"""Mosaic of the YOLOv4 recipe: one training sample made of four images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.structures import Boxes, Instances
from fvcore.transforms.transform import Transform

from yolof_d2.checks import check_range, check_size, require
from yolof_d2.errors import ConfigError, DataError

from .augmentation import build_augmentation
from .mapper import YOLOFDatasetMapper


class TileMapper(YOLOFDatasetMapper):
    """The mapper for training, whose samples have a ``content_box``: where the image is.

    It is four ints, XYXY pixels of the sample, rounded. Outside lies the padding of a jitter crop
    or the area that a shift vacated.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        if "annotations" not in dataset_dict:
            raise DataError(
                f"image {dataset_dict['file_name']!r} has no 'annotations'; expected a list, empty "
                "where the image shows no objects"
            )
        return super().__call__(dataset_dict)

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Transform, image_shape: tuple[int, int]
    ) -> None:
        # Detectron2's hook for subclasses that need the transforms.
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        whole = np.array([[0.0, 0.0, dataset_dict["width"], dataset_dict["height"]]])
        box = np.rint(transforms.apply_box(whole)[0])
        dataset_dict["content_box"] = box.clip(0, image_shape[::-1] * 2).astype(int).tolist()


class MosaicMapper:
    """With a probability, combines an image and three random others; else maps it alone.

    The three are drawn from the whole data set, with replacement, by NumPy's global generator. A
    sample thus depends on the image and the state of the generator alone; in the published code it
    depends on the worker too, which keeps a pool of the images it has seen.

    Each of the four is first mapped with all augmentations (the shift too, as published; the mosaic
    is not shifted again). A random point then cuts the canvas in four; the image itself goes to the
    top left, the others to the top right, bottom left and bottom right. A tile lies with its outer
    corner on that of the canvas and ends at the cut. Padding at its outer corner, of a jitter crop
    or a shift, is skipped, as published for the jitter crop. The canvas is 0 where no tile reaches.
    Boxes are clipped to the visible part of their tile, and dropped outside it.
    """

    def __init__(
        self,
        mapper: TileMapper,
        dataset: Sequence[dict[str, Any]],
        *,
        prob: float,
        size: Sequence[int],
        center_range: Sequence[float],
    ) -> None:
        """
        Args:
            dataset: the images to draw from, in Detectron2's data set format: those that the
                loader reads, so that its filters apply.
            size: (height, width) of the canvas in pixels.
            center_range: smallest and largest share of the height, and of the width, at which the
                canvas is cut; both in (0, 1).

        Raises:
            ConfigError: a value out of its range.
        """
        require(0 <= prob <= 1, "INPUT.MOSAIC.PROB", "lie in [0, 1]", prob)
        self.mapper = mapper
        self.dataset = dataset
        self.prob = prob
        self.size = check_size("INPUT.MOSAIC.SIZE", size)
        self.center_range = check_range("INPUT.MOSAIC.CENTER_RANGE", center_range, below=1)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make a training sample.

        Args:
            dataset_dict: one image in Detectron2's data set format; not modified.

        Returns:
            The mapper's sample or, for a mosaic, the same dict with another ``image`` (uint8
            (C, *size)) and ``instances`` (``gt_boxes`` in XYXY pixels of it, and ``gt_classes``),
            and with ``mosaic_image_ids``, a list of four. ``file_name``, ``image_id``, ``height``
            and ``width`` stay those of the image. Detectron2 groups images of like aspect ratio by
            the latter two; by those of the canvas, nearly every batch would hold mosaics only or
            none.

        Raises:
            DataError: one of the images is missing or corrupt; the message names it.
        """
        if np.random.random() >= self.prob:
            sample = self.mapper(dataset_dict)
            del sample["content_box"]
            return sample
        others = np.random.randint(len(self.dataset), size=3).tolist()
        cut = np.random.uniform(*self.center_range, size=2) * self.size
        cut_y, cut_x = np.rint(cut).astype(int).tolist()
        records = [dataset_dict, *(self.dataset[index] for index in others)]
        tiles = [self.mapper(record) for record in records]

        height, width = self.size
        canvas = tiles[0]["image"].new_zeros((len(tiles[0]["image"]), height, width))
        instances = []
        for index, tile in enumerate(tiles):
            left, top, right, bottom = tile["content_box"]
            x, canvas_x, seen_width = _place(left, right, cut_x, width, at_end=index in (1, 3))
            y, canvas_y, seen_height = _place(top, bottom, cut_y, height, at_end=index in (2, 3))
            pixels = tile["image"][:, y : y + seen_height, x : x + seen_width]
            canvas[:, canvas_y : canvas_y + seen_height, canvas_x : canvas_x + seen_width] = pixels

            boxes = Boxes(tile["instances"].gt_boxes.tensor - torch.tensor([x, y, x, y]))
            boxes.clip((seen_height, seen_width))
            boxes.tensor += torch.tensor([canvas_x, canvas_y, canvas_x, canvas_y])
            seen = Instances(self.size, gt_boxes=boxes, gt_classes=tile["instances"].gt_classes)
            instances.append(detection_utils.filter_empty_instances(seen))

        sample = tiles[0]
        del sample["content_box"]
        sample["image"] = canvas
        sample["instances"] = Instances.cat(instances)
        sample["mosaic_image_ids"] = [tile.get("image_id") for tile in tiles]
        return sample


def _place(start: int, stop: int, cut: int, length: int, *, at_end: bool) -> tuple[int, int, int]:
    """Place a tile along one axis; all in pixels.

    Args:
        start, stop: of the content, in the tile.
        cut: where the canvas is cut.
        length: of the canvas.
        at_end: the tile lies behind the cut and ends with the canvas; otherwise it lies before the
            cut and starts with the canvas.

    Returns:
        The start of the visible part in the tile, its start in the canvas, and its extent.
    """
    if at_end:
        extent = min(stop - start, length - cut)
        return stop - extent, length - extent, extent
    return start, 0, min(stop - start, cut)


def build_mosaic_mapper(cfg: CfgNode, dataset: Sequence[dict[str, Any]]) -> MosaicMapper:
    """Build the mapper for training with mosaics, of the images that the loader reads.

    Raises:
        ConfigError: an impossible value, or a model that is trained with more than boxes.
    """
    for name in ("MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS"):
        if cfg.MODEL[name]:
            raise ConfigError(
                f"MODEL.{name} is on, but a mosaic has boxes only; set INPUT.MOSAIC.PROB 0"
            )
    mapper = TileMapper(cfg, True, augmentations=build_augmentation(cfg, True))
    node = cfg.INPUT.MOSAIC
    own = {"prob": node.PROB, "size": node.SIZE, "center_range": node.CENTER_RANGE}
    return MosaicMapper(mapper, dataset, **own)
