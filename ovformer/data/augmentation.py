"""The transforms: large-scale jitter of images, those of clips, a plain resize for evaluation."""

from collections.abc import Callable, Sequence

import numpy as np

from ovformer.d2 import CfgNode
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
    return [
        *_flips(flip),
        *_extra(extra),
        T.ResizeScale(min_scale, max_scale, target_height=image_size, target_width=image_size),
        T.FixedSizeCrop((image_size, image_size), pad=False),
    ]


def clip_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Return the augmentations of training on clips; the frames of a clip share what is drawn.

    Args:
        cfg: ``INPUT`` is read. The published names "flip_by_clip", "choice_by_clip" and
            "range_by_clip" mean "horizontal", "choice" and "range".

    Raises:
        ValueError: a name is not known.
    """
    style = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING.removesuffix("_by_clip")
    if style not in ("choice", "range"):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING: unknown {cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING!r}. "
            "Known: choice, range, choice_by_clip, range_by_clip."
        )
    flip = "horizontal" if cfg.INPUT.RANDOM_FLIP == "flip_by_clip" else cfg.INPUT.RANDOM_FLIP
    crop = cfg.INPUT.CROP
    return [
        *_flips(flip),
        *_extra(cfg.INPUT.AUGMENTATIONS),
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, style),
        *([T.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else []),
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


def _flips(flip: str) -> list[T.Augmentation]:
    if flip not in FLIPS:
        raise ValueError(f"INPUT.RANDOM_FLIP: unknown flip {flip!r}. Known: {', '.join(FLIPS)}.")
    if flip == "none":
        return []
    return [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _extra(names: Sequence[str]) -> list[T.Augmentation]:
    unknown = [name for name in names if name not in EXTRA_AUGMENTATIONS]
    if unknown:
        raise ValueError(
            f"INPUT.AUGMENTATIONS: unknown augmentation {unknown[0]!r}. "
            f"Known: {', '.join(EXTRA_AUGMENTATIONS)}."
        )
    return [EXTRA_AUGMENTATIONS[name]() for name in names]
