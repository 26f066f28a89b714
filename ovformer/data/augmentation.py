"""The transforms of images: large-scale jitter for training, a plain resize for evaluation."""

from collections.abc import Callable, Sequence

import numpy as np

from ovformer.d2 import transforms as T

# INPUT.AUGMENTATIONS, on RGB images.
EXTRA_AUGMENTATIONS: dict[str, Callable[[], T.Augmentation]] = {
    "brightness": lambda: T.RandomBrightness(0.9, 1.1),
    "contrast": lambda: T.RandomContrast(0.9, 1.1),
    "saturation": lambda: T.RandomSaturation(0.9, 1.1),
    "rotation": lambda: T.RandomRotation(
        [-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)], sample_style="range"
    ),
    "rotation90": lambda: T.RandomRotation([0, 90, 180, 270], sample_style="choice"),
}
FLIPS = ("horizontal", "vertical", "none")

# Grey, as published: close to the mean that the model subtracts.
PAD_VALUE = 128


def train_augmentations(
    image_size: int, min_scale: float, max_scale: float, flip: str, extra: Sequence[str]
) -> list[T.Augmentation]:
    """Return the augmentations of training; the result still has to be padded with :func:`pad`.

    Args:
        image_size: side of the training images in pixels.
        min_scale: the image is resized to fit a square of ``image_size`` times a factor drawn from
            [``min_scale``, ``max_scale``]; what is larger than ``image_size`` is cropped.
        max_scale: see ``min_scale``.
        flip: "horizontal", "vertical" or "none".
        extra: names in ``EXTRA_AUGMENTATIONS``, applied in this order before the jitter.

    Raises:
        ValueError: a name is not known.
    """
    if flip not in FLIPS:
        raise ValueError(f"INPUT.RANDOM_FLIP: unknown flip {flip!r}. Known: {', '.join(FLIPS)}.")
    unknown = [name for name in extra if name not in EXTRA_AUGMENTATIONS]
    if unknown:
        raise ValueError(
            f"INPUT.AUGMENTATIONS: unknown augmentation {unknown[0]!r}. "
            f"Known: {', '.join(EXTRA_AUGMENTATIONS)}."
        )
    flips = []
    if flip != "none":
        flips.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return [
        *flips,
        *(EXTRA_AUGMENTATIONS[name]() for name in extra),
        T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size),
        T.FixedSizeCrop((image_size, image_size), pad=False),
    ]


def evaluation_augmentations(min_size: int, max_size: int) -> list[T.Augmentation]:
    """Return the resize of evaluation.

    Args:
        min_size: the short edge gets this many pixels,
        max_size: unless the long edge would get more than this many.
    """
    return [T.ResizeShortestEdge(min_size, max_size, sample_style="choice")]


def pad(array: np.ndarray, size: int, value: int) -> np.ndarray:
    """Pad an image or mask (h, w, ...) at the right and the bottom to (``size``, ``size``, ...)."""
    height, width = array.shape[:2]
    rest = [(0, 0)] * (array.ndim - 2)
    return np.pad(array, [(0, size - height), (0, size - width), *rest], constant_values=value)
