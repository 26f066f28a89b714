"""Reading image files, and dropping empty instances.

Legend: N instances, H W pixels, C channels.
"""

import logging
import os
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from ovformer.d2.builtin.env import PathManager
from ovformer.d2.builtin.structures import Instances

logger = logging.getLogger(__name__)

# ITU-R BT.601: rows Y, U, V of R, G, B in [0, 1].
_RGB_TO_YUV = np.array(
    [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
)


# EXIF orientation -> the transpose that makes the image upright; 1 is upright.
_TURN_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """The size of an image differs from the one in its annotation."""


def read_image(file_name: str | os.PathLike, format: str | None = None) -> np.ndarray:
    """Read an image file, turned as its EXIF orientation says.

    Args:
        file_name: path of the file.
        format: a mode of Pillow such as "RGB" or "L", or "BGR", or "YUV-BT.601"; None keeps the
            mode of the file.

    Returns:
        (H, W, C), for "L" (H, W, 1); uint8, for "YUV-BT.601" float with Y in [0, 1].
    """
    with PathManager.open(os.fspath(file_name), "rb") as file:
        image = _turn_upright(Image.open(file))
        if format is not None:
            image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
        array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return array / 255.0 @ _RGB_TO_YUV.T
    return array


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # Pillow raises many types for a broken EXIF block
        logger.debug("The EXIF block is broken, so its orientation is ignored: %s", error)
        return image
    turn = _TURN_OF_ORIENTATION.get(orientation)
    return image if turn is None else image.transpose(turn)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Check an image against its record's "height" and "width", or set them if absent.

    Args:
        dataset_dict: the record.
        image: (H, W, ...).

    Raises:
        SizeMismatchError: they differ.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if expected != (width, height):
        name = dataset_dict.get("file_name", "without a file name")
        raise SizeMismatchError(
            f"Image {name}: it has {width}x{height} pixels, its annotation says "
            f"{expected[0]}x{expected[1]}. Correct width and height there."
        )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop the instances with an empty box or mask.

    Args:
        instances: with gt_boxes and perhaps gt_masks.
        by_box: drop those with an empty box.
        by_mask: drop those with an empty mask.
        box_threshold: a box with a side of at most this many pixels is empty.
        return_mask: also return bool (N,): which instances were kept.
    """
    if not (by_box or by_mask):
        raise AssertionError("filter_empty_instances: by_box or by_mask must be True")
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]
