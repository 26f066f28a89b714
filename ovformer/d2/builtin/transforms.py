"""Augmentations, and the transforms and the interface that they use.

Each class draws the same numbers from NumPy's global random state as detectron2's of the same name.

Legend: H W pixels, C channels.
"""

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from ovformer.d2.builtin.augmentation import AugInput, Augmentation, AugmentationList
from ovformer.d2.builtin.color_augmentation import RandomBrightness, RandomContrast
from ovformer.d2.builtin.transform_ops import ColorTransform, ResizeTransform, RotationTransform

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "BlendTransform",
    "ColorTransform",
    "CropTransform",
    "FixedSizeCrop",
    "HFlipTransform",
    "NoOpTransform",
    "PadTransform",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "ResizeScale",
    "ResizeShortestEdge",
    "ResizeTransform",
    "RotationTransform",
    "Transform",
    "TransformList",
    "VFlipTransform",
]

_BILINEAR = Image.Resampling.BILINEAR


class RandomFlip(Augmentation):
    """Flips the image at random, left to right or top to bottom.

    Args:
        prob: probability of a flip.
        horizontal: flip left to right.
        vertical: flip top to bottom.

    Raises:
        ValueError: both directions or neither.
    """

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        if horizontal == vertical:
            raise ValueError(
                "RandomFlip: exactly one of horizontal and vertical must be True; for both use two"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class ResizeShortestEdge(Augmentation):
    """Resizes the image by its shorter side and keeps the aspect ratio.

    Args:
        short_edge_length: in pixels; one, the ends of a range, or a list to choose from.
        max_size: upper bound of the longer side in pixels; it wins over ``short_edge_length``.
        sample_style: "range" or "choice": how to read ``short_edge_length``.
        interp: a method of Pillow.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = _BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise AssertionError(
                "ResizeShortestEdge: sample_style must be 'range' or 'choice', got "
                f"{sample_style!r}"
            )
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        if self.is_range and len(short_edge_length) != 2:
            raise AssertionError(
                f"ResizeShortestEdge: a range has two ends, got {short_edge_length}"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image; none for a length of 0."""
        if self.is_range:
            low, high = self.short_edge_length
            size = np.random.randint(low, high + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        new_size = self.get_output_shape(height, width, size, self.max_size)
        return ResizeTransform(height, width, *new_size, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Return (height, width) after resizing, in pixels."""
        size = float(short_edge_length)
        scale = size / min(oldh, oldw)
        # The shorter side is set, not scaled, so that no rounding error moves it.
        height, width = (size, scale * oldw) if oldh < oldw else (scale * oldh, size)
        longest = max(height, width)
        if longest > max_size:
            height, width = height * (max_size / longest), width * (max_size / longest)
        return int(height + 0.5), int(width + 0.5)


class ResizeScale(Augmentation):
    """Large-scale jitter, first part: fits the image into a target of random size.

    Args:
        min_scale: lower bound of the random factor of the target's size.
        max_scale: upper bound.
        target_height: in pixels, before scaling.
        target_width: in pixels, before scaling.
        interp: a method of Pillow.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = _BILINEAR,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image, which keeps the aspect ratio."""
        scale = np.random.uniform(self.min_scale, self.max_scale)
        height, width = image.shape[:2]
        factor = min(self.target_height * scale / height, self.target_width * scale / width)
        new_height, new_width = int(np.round(height * factor)), int(np.round(width * factor))
        return ResizeTransform(height, width, new_height, new_width, self.interp)


class FixedSizeCrop(Augmentation):
    """Large-scale jitter, second part: crops at random, then pads to a fixed size.

    Args:
        crop_size: (height, width) in pixels.
        pad: pad smaller images at the bottom and the right.
        pad_value: of images.
        seg_pad_value: of segmentations.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Return the transform for an image."""
        (height, width), (crop_h, crop_w) = image.shape[:2], self.crop_size
        position = np.random.uniform(0.0, 1.0)  # one number for both directions
        y0 = int(np.round(max(height - crop_h, 0) * position))
        x0 = int(np.round(max(width - crop_w, 0) * position))
        transforms = [CropTransform(x0, y0, crop_w, crop_h, width, height)]
        if self.pad:
            kept_h, kept_w = min(height, crop_h), min(width, crop_w)
            missing = crop_w - kept_w, crop_h - kept_h
            # At the bottom and the right only, so that coordinates stay valid.
            transforms.append(
                PadTransform(0, 0, *missing, kept_w, kept_h, self.pad_value, self.seg_pad_value)
            )
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Crops at a random position, to a given or random size.

    Args:
        crop_type: how to read ``crop_size``.
        crop_size: "relative": shares of (height, width) in (0, 1]; "relative_range": the
            smallest such shares, the largest being 1; "absolute": (height, width) in pixels,
            at most the image's; "absolute_range": (least, most) pixels of either side.
    """

    _TYPES = ("relative", "relative_range", "absolute", "absolute_range")

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        if crop_type not in self._TYPES:
            raise AssertionError(
                f"RandomCrop: unknown crop_type {crop_type!r}. Known: {', '.join(self._TYPES)}"
            )
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise AssertionError(f"RandomCrop: expected (least, most) pixels, got {crop_size}")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image."""
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        y0 = np.random.randint(height - crop_h + 1)
        x0 = np.random.randint(width - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of a crop, in pixels, for an image of ``image_size``."""
        height, width = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], height), min(self.crop_size[1], width)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            crop_h = np.random.randint(min(height, low), min(height, high) + 1)
            crop_w = np.random.randint(min(width, low), min(width, high) + 1)
            return crop_h, crop_w
        if self.crop_type == "relative":
            share_h, share_w = self.crop_size
        else:
            least = np.asarray(self.crop_size, dtype=np.float32)
            share_h, share_w = least + np.random.rand(2) * (1 - least)
        return int(height * share_h + 0.5), int(width * share_w + 0.5)


class RandomRotation(Augmentation):
    """Rotates the image by a random angle, counter-clockwise.

    Args:
        angle: in degrees; one, the ends of a range, or a list to choose from.
        expand: enlarge the result so that it holds the whole rotated image.
        center: (x, y) relative to the image's size, or two such corners of a range, or a list
            to choose from; None is the image's centre. It has no effect with
            ``expand``.
        sample_style: "range" or "choice": how to read ``angle`` and ``center``.
        interp: a method of OpenCV.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise AssertionError(
                f"RandomRotation: sample_style must be 'range' or 'choice', got {sample_style!r}"
            )
        self.is_range = sample_style == "range"
        if isinstance(angle, float | int):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], float | int):
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image."""
        height, width = image.shape[:2]
        center = None
        if self.is_range:
            angle = np.random.uniform(*self.angle)
            if self.center is not None:
                (x_low, y_low), (x_high, y_high) = self.center
                center = np.random.uniform(x_low, x_high), np.random.uniform(y_low, y_high)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.randint(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = width * center[0], height * center[1]
        return RotationTransform(height, width, angle, self.expand, center, self.interp)
