"""Augments the frames of a training clip: those of a video alike, copies of an image differently.

Legend: T frames, h w pixels.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from ovformer.d2 import CfgNode
from ovformer.d2 import transforms as T
from ovformer.data.samples.augmentation import build_extra_augmentations, build_flip

RESIZE_STYLES = ("choice", "range")
CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")
# Suffix of the published names of augmentations that all frames of a clip share.
BY_CLIP = "_by_clip"


class ClipAugmentation:
    """Augments the frames of a clip: first all alike, then each by its own random transforms.

    Args:
        shared: applied in this order, with the same random numbers to all frames.
        own: applied after that, in this order, with other random numbers to each frame.
    """

    def __init__(self, shared: Sequence[T.Augmentation], own: Sequence[T.Augmentation] = ()):
        self.shared = T.AugmentationList(shared)
        self.own = T.AugmentationList(own)

    def __call__(
        self, frames: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[T.TransformList]]:
        """Return the augmented frames, and the transforms of each.

        Args:
            frames: T images of one size, uint8 (h, w, 3), RGB. They are not changed.
        """
        # Some augmentations look at the pixels, as contrast at their mean: the first frame decides
        # for all, so that a clip does not flicker.
        shared = self.shared(T.AugInput(frames[0]))
        images, transforms = [], []
        for frame in frames:
            augmented = T.AugInput(shared.apply_image(frame))
            transforms.append(shared + self.own(augmented))
            images.append(augmented.image)
        return images, transforms


def build_clip_augmentation(cfg: CfgNode) -> ClipAugmentation:
    """Build the augmentation of videos; the frames of a clip share all of it.

    Args:
        cfg: ``INPUT`` is read. The published names "flip_by_clip", "choice_by_clip" and
            "range_by_clip" mean "horizontal", "choice" and "range".

    Raises:
        ValueError: a value is not known.
    """
    node = cfg.INPUT
    extra = build_extra_augmentations(node.AUGMENTATIONS, "INPUT.AUGMENTATIONS")
    crop, resize = _build_crop(node, "INPUT"), _build_resize(node, "INPUT")
    return ClipAugmentation([*_build_flip(cfg), *extra, *crop, resize])


def build_pseudo_augmentation(cfg: CfgNode) -> ClipAugmentation:
    """Build the augmentation of the copies of an image, which makes their objects move.

    The copies share the flip. They share the resize as well if its name ends with "_by_clip"; then
    it comes before the crop.

    Args:
        cfg: ``INPUT.PSEUDO`` and ``INPUT.RANDOM_FLIP`` are read.

    Raises:
        ValueError: a value is not known.
    """
    node, prefix = cfg.INPUT.PSEUDO, "INPUT.PSEUDO"
    extra = build_extra_augmentations(node.AUGMENTATIONS, f"{prefix}.AUGMENTATIONS")
    # Rotation comes before the crop: after it, parts that were cropped away would turn back in.
    shared, own = _build_flip(cfg), [*extra, *_build_crop(node, prefix)]
    if node.MIN_SIZE_TRAIN_SAMPLING.endswith(BY_CLIP):
        shared.append(_build_resize(node, prefix))
    else:
        own.append(_build_resize(node, prefix))
    return ClipAugmentation(shared, own)


def find_clip_input_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield an error message for each wrong key of both augmentations."""
    # One part at a time: an error in one key must not hide those of the others.
    parts = [partial(_build_flip, cfg)]
    for node, prefix in ((cfg.INPUT, "INPUT"), (cfg.INPUT.PSEUDO, "INPUT.PSEUDO")):
        parts += [
            partial(build_extra_augmentations, node.AUGMENTATIONS, f"{prefix}.AUGMENTATIONS"),
            partial(_build_crop, node, prefix),
            partial(_build_resize, node, prefix),
        ]
    for part in parts:
        try:
            part()
        except ValueError as error:
            yield str(error)


def _build_flip(cfg: CfgNode) -> list[T.Augmentation]:
    flip = cfg.INPUT.RANDOM_FLIP
    return build_flip("horizontal" if flip == "flip" + BY_CLIP else flip)


def _build_resize(node: CfgNode, prefix: str) -> T.Augmentation:
    style = node.MIN_SIZE_TRAIN_SAMPLING.removesuffix(BY_CLIP)
    if style not in RESIZE_STYLES:
        known = ", ".join([*RESIZE_STYLES, *(name + BY_CLIP for name in RESIZE_STYLES)])
        raise ValueError(
            f"{prefix}.MIN_SIZE_TRAIN_SAMPLING: unknown {node.MIN_SIZE_TRAIN_SAMPLING!r}. "
            f"Known: {known}."
        )
    sizes = node.MIN_SIZE_TRAIN
    # detectron2 takes a single number as well.
    if isinstance(sizes, int):
        sizes = (sizes,)
    is_valid = len(sizes) == 2 and sizes[0] <= sizes[1] if style == "range" else len(sizes) > 0
    if not is_valid or min(sizes) < 1 or node.MAX_SIZE_TRAIN < max(sizes):
        wanted = "the smallest and the largest" if style == "range" else "all"
        raise ValueError(
            f"{prefix}.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN: expected {wanted} of the short edge's sizes "
            "and the long edge's limit, at least as large, in pixels; got "
            f"{tuple(sizes)} and {node.MAX_SIZE_TRAIN}."
        )
    return T.ResizeShortestEdge(sizes, node.MAX_SIZE_TRAIN, style)


def _build_crop(node: CfgNode, prefix: str) -> list[T.Augmentation]:
    crop, prefix = node.CROP, f"{prefix}.CROP"
    if not crop.ENABLED:
        return []
    if crop.TYPE not in CROP_TYPES:
        raise ValueError(f"{prefix}.TYPE: unknown {crop.TYPE!r}. Known: {', '.join(CROP_TYPES)}.")
    size = tuple(crop.SIZE)
    expected = "two sizes of at least 1 pixel"
    is_valid = len(size) == 2 and min(size) >= 1
    if crop.TYPE == "absolute_range":
        expected += ", the smaller one first"
        is_valid = is_valid and size[0] <= size[1]
    elif crop.TYPE.startswith("relative"):
        expected = "two shares above 0 and up to 1"
        is_valid = len(size) == 2 and all(0 < share <= 1 for share in size)
    if not is_valid:
        raise ValueError(f"{prefix}.SIZE: expected {expected} for {crop.TYPE}, got {size}.")
    return [T.RandomCrop(crop.TYPE, size)]
