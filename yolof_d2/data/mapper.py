"""Detectron2's mapper, with errors that name the bad image."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from fvcore.transforms.transform import Transform

from yolof_d2.errors import DataError

from .augmentation import build_augmentation
from .datasets import IMAGE_READ_ERRORS


class YOLOFDatasetMapper(DatasetMapper):
    """Detectron2's :class:`DatasetMapper`; a bad image raises :class:`DataError` naming it."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and transform one image.

        Args:
            dataset_dict: one image in Detectron2's data set format; not modified.

        Returns:
            The dict with ``image``, uint8 (C, H, W) in ``INPUT.FORMAT`` channel order, and, for
            training, ``instances`` with XYXY boxes in pixels of the transformed image.

        Raises:
            DataError: the image is missing or corrupt, or its size is not the one in the json.
        """
        try:
            return super().__call__(dataset_dict)
        except IMAGE_READ_ERRORS:
            # Read again only now: good images cost nothing, and an error of the augmentations
            # (a ValueError too) is not blamed on the image.
            _raise_if_image_is_bad(dataset_dict, self.image_format)
            raise

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: Transform, image_shape: tuple[int, int]
    ) -> None:
        # Detectron2 transforms boxes in the type of the json: whole numbers would stay whole, and a
        # resize would move each side by up to a pixel.
        for annotation in dataset_dict["annotations"]:
            annotation["bbox"] = np.asarray(annotation["bbox"], dtype=np.float64).tolist()
        super()._transform_annotations(dataset_dict, transforms, image_shape)


def _raise_if_image_is_bad(dataset_dict: dict[str, Any], image_format: str) -> None:
    """Read the image alone, and raise DataError if it is missing, corrupt or of another size."""
    name = dataset_dict["file_name"]
    where = f"image {name!r} (image id {dataset_dict.get('image_id')!r})"
    try:
        image: np.ndarray = detection_utils.read_image(name, format=image_format)
    except FileNotFoundError as error:
        raise DataError(f"{where} does not exist; restore it or remove it from the json") from error
    except IMAGE_READ_ERRORS as error:
        raise DataError(
            f"{where} cannot be read ({type(error).__name__}: {error}); replace the file or "
            "remove it from the json"
        ) from error
    try:
        # A copy, because the check fills in width and height where they are missing.
        detection_utils.check_image_size(dict(dataset_dict), image)
    except detection_utils.SizeMismatchError as error:
        raise DataError(
            f"{where} is {image.shape[1]} x {image.shape[0]} pixels (width x height, after EXIF "
            f"rotation), the json says {dataset_dict.get('width')} x {dataset_dict.get('height')}; "
            "correct width and height in the json, and check that its boxes fit this image"
        ) from error


def build_mapper(cfg: CfgNode, is_train: bool) -> YOLOFDatasetMapper:
    """Build the mapper of single images; ``INPUT.MOSAIC`` is for :func:`build_mosaic_mapper`."""
    return YOLOFDatasetMapper(cfg, is_train, augmentations=build_augmentation(cfg, is_train))
