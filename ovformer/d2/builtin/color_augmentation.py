"""Augmentations of colour: the image is blended with a constant."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from ovformer.d2.builtin.augmentation import Augmentation


class _RandomBlend(Augmentation):
    """Blends the image with a constant.

    Args:
        intensity_min: lower bound of the image's random weight; 1 leaves the image unchanged.
        intensity_max: upper bound, exclusive.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def _blend_with(self, other: float) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(_RandomBlend):
    """Blends the image with black."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image."""
        return self._blend_with(0)


class RandomContrast(_RandomBlend):
    """Blends the image with its mean."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the transform for an image."""
        return self._blend_with(image.mean())
