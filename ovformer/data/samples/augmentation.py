"""Builds the transforms of images: large-scale jitter for training, a resize for evaluation."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from ovformer.d2 import transforms as T

# INPUT.AUGMENTATIONS, on RGB images.
EXTRA_AUGMENTATIONS: dict[str, Callable[[], T.Augmentation]] = {
    "brightness": lambda: T.RandomBrightness(0.9, 1.1),
    "contrast": lambda: T.RandomContrast(0.9, 1.1),
    "saturation": lambda: RandomSaturation(0.9, 1.1),
    "rotation": lambda: T.RandomRotation(
        [-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)], sample_style="range"
    ),
    "rotation90": lambda: T.RandomRotation([0, 90, 180, 270], sample_style="choice"),
}
FLIPS = ("horizontal", "vertical", "none")

# Grey, as in the published code: close to the mean that the model subtracts.
PAD_VALUE = 128


def build_train_augmentations(
    image_size: int, min_scale: float, max_scale: float, flip: str, extra: Sequence[str]
) -> list[T.Augmentation]:
    """Build the augmentations of training; :func:`pad` has to pad their result.

    Args:
        image_size: side of the training images in pixels.
        min_scale: the image is resized to fit a square of ``image_size`` times a factor drawn from
            [``min_scale``, ``max_scale``], and cropped to ``image_size``.
        max_scale: see ``min_scale``.
        flip: "horizontal", "vertical" or "none".
        extra: names in ``EXTRA_AUGMENTATIONS``, applied in this order before the jitter.

    Raises:
        ValueError: a name is not known.
    """
    # The crop does not pad: padding is no part of the transforms, which are applied to masks too.
    return [
        *build_flip(flip),
        *build_extra_augmentations(extra, "INPUT.AUGMENTATIONS"),
        T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size),
        T.FixedSizeCrop((image_size, image_size), pad=False),
    ]


def build_evaluation_augmentations(min_size: int, max_size: int) -> list[T.Augmentation]:
    """Build the resize of evaluation.

    Args:
        min_size: pixels of the short edge.
        max_size: most pixels of the long edge; the short edge gets smaller where it needs to.
    """
    return [T.ResizeShortestEdge(min_size, max_size, sample_style="choice")]


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Pad an image or mask (h, w, ...) at the right and the bottom to (*size, ...)."""
    missing = [(0, wanted - got) for wanted, got in zip(size, array.shape[:2], strict=True)]
    rest = [(0, 0)] * (array.ndim - 2)
    return np.pad(array, [*missing, *rest], constant_values=value)


def build_flip(flip: str) -> list[T.Augmentation]:
    """Build the random flip that ``INPUT.RANDOM_FLIP`` names, or raise ValueError."""
    if flip not in FLIPS:
        raise ValueError(f"INPUT.RANDOM_FLIP: unknown flip {flip!r}. Known: {', '.join(FLIPS)}.")
    if flip == "none":
        return []
    return [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def build_extra_augmentations(names: Sequence[str], key: str) -> list[T.Augmentation]:
    """Build the augmentations of these names, in this order.

    Args:
        names: among ``EXTRA_AUGMENTATIONS``.
        key: the config key that holds them, for the error message.

    Raises:
        ValueError: a name is not known.
    """
    unknown = [name for name in names if name not in EXTRA_AUGMENTATIONS]
    if unknown:
        raise ValueError(
            f"{key}: unknown augmentation {unknown[0]!r}. Known: {', '.join(EXTRA_AUGMENTATIONS)}."
        )
    return [EXTRA_AUGMENTATIONS[name]() for name in names]


class RandomSaturation(T.Augmentation):
    """Blends an image with its own grey version.

    detectron2's class of that name stores the grey version of the first image, and would blend it
    into the other frames of a clip.

    Args:
        intensity_min: the image's weight is drawn from [intensity_min, intensity_max); at 1 the
            image does not change.
        intensity_max: see ``intensity_min``.
    """

    def __init__(self, intensity_min: float, intensity_max: float):
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the weight for an RGB image and the other frames of its clip."""
        # Drawn here and not per image: the frames of a clip share this transform.
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return T.ColorTransform(functools.partial(_saturate, weight=weight))


def _saturate(image: np.ndarray, weight: float) -> np.ndarray:
    luma = image.dot([0.299, 0.587, 0.114])[:, :, None]  # ITU-R BT.601
    blend = T.BlendTransform(src_image=luma, src_weight=1 - weight, dst_weight=weight)
    return blend.apply_image(image)
