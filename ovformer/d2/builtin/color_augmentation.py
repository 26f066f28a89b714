"""Augmentations of colour: the image is blended with a constant or with its own grey version.

Legend: H W pixels.
"""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from ovformer.d2.builtin.augmentation import Augmentation


class _RandomBlend(Augmentation):
    """A mix of the image with another one; the image's share is drawn from a range."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        """Draw the image's share from [intensity_min, intensity_max); 1 leaves it as it is."""
        self._init(locals())

    def _blend_with(self, other: float | np.ndarray) -> Transform:
        share = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - share, dst_weight=share)


class RandomBrightness(_RandomBlend):
    """A mix with black."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Decide for an image."""
        return self._blend_with(0)


class RandomContrast(_RandomBlend):
    """A mix with the mean grey of the image."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Decide for an image."""
        return self._blend_with(image.mean())
