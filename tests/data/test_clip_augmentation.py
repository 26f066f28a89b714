"""Augmentations that the frames of a clip share, and those of each copy of an image."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode
from ovformer.data.samples.clip_augmentation import (
    ClipAugmentation,
    build_clip_augmentation,
    build_pseudo_augmentation,
)

COLOURS = ["brightness", "contrast", "saturation"]
SEEDS = st.integers(0, 2**31 - 1)


def config(**options: object) -> CfgNode:
    """A config with other values of keys below INPUT; "__" stands for the dot."""
    pairs = {"INPUT." + key.replace("__", "."): value for key, value in options.items()}
    return get_ovformer_cfg(None, [*itertools.chain(*pairs.items())])


def frames(count: int, size: tuple[int, int] = (24, 36)) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8))


def augment(augmentation: ClipAugmentation, clip: list[np.ndarray], seed: int) -> tuple:
    np.random.seed(seed)
    return augmentation(clip)


@given(seed=SEEDS, extra=st.sets(st.sampled_from(["brightness", "saturation", "rotation"])))
def test_frames_of_a_video_are_augmented_alike(seed: int, extra: set[str]) -> None:
    """Each frame is augmented as if all frames were copies of it."""
    crop = {"CROP__ENABLED": True, "CROP__TYPE": "absolute_range", "CROP__SIZE": (12, 20)}
    sizes = {"MIN_SIZE_TRAIN": (16, 20), "RANDOM_FLIP": "flip_by_clip"}
    augmentation = build_clip_augmentation(config(AUGMENTATIONS=sorted(extra), **crop, **sizes))
    clip = frames(3)
    images, transforms = augment(augmentation, clip, seed)
    assert len({image.shape for image in images}) == 1
    for frame, image in zip(clip, images, strict=True):
        alone, _ = augment(augmentation, [frame] * 3, seed)
        assert all(np.array_equal(image, other) for other in alone)
    points = [t.apply_coords(np.array([[3.0, 5.0]])).tolist() for t in transforms]
    assert points == [points[0]] * 3


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_a_clip_change_alike(name: str) -> None:
    unsized = config(AUGMENTATIONS=[name], MIN_SIZE_TRAIN=(24,), RANDOM_FLIP="none")
    grey, red = np.full((24, 36, 3), 90, np.uint8), np.zeros((24, 36, 3), np.uint8)
    red[..., 0] = 200
    (first, second), _ = augment(build_clip_augmentation(unsized), [red, grey], 5)
    assert not np.array_equal(first, red) and len(np.unique(second)) == 1
    # A grey frame has no saturation: nothing of the red one may show in it.
    assert np.array_equal(second, grey) == (name == "saturation")


@given(seed=SEEDS)
def test_each_copy_of_an_image_is_augmented_differently(seed: int) -> None:
    augmentation = build_pseudo_augmentation(config(PSEUDO__MIN_SIZE_TRAIN=(16, 17, 18, 19, 20)))
    (frame,) = frames(1, size=(64, 96))
    images, transforms = augment(augmentation, [frame] * 4, seed)
    points = {tuple(t.apply_coords(np.array([[30.0, 20.0]]))[0]) for t in transforms}
    assert len(points) == 4
    assert all(16 <= min(image.shape[:2]) <= 20 for image in images)
    # A copy depends on the seed and on its place only.
    fewer, _ = augment(augmentation, [frame] * 2, seed)
    assert all(map(np.array_equal, images[:2], fewer))


def test_copies_share_the_flip_and_may_share_the_resize() -> None:
    """With a name that ends in "_by_clip", the copies get one size, drawn for each clip."""
    for style, is_shared in (("range", False), ("range_by_clip", True)):
        options = {"PSEUDO__MIN_SIZE_TRAIN": (16, 40), "PSEUDO__MIN_SIZE_TRAIN_SAMPLING": style}
        options |= {"PSEUDO__CROP__ENABLED": False, "PSEUDO__AUGMENTATIONS": []}
        augmentation = build_pseudo_augmentation(config(RANDOM_FLIP="flip_by_clip", **options))
        shapes, flips = [], []
        for seed in range(10):
            images, transforms = augment(augmentation, frames(1) * 3, seed)
            shapes.append({image.shape for image in images})
            ends = [t.apply_coords(np.array([[1.0, 5.0], [9.0, 5.0]]))[:, 0] for t in transforms]
            flips.append({bool(left > right) for left, right in ends})
        assert {len(flip) for flip in flips} == {1} and set.union(*flips) == {True, False}
        assert all(len(sizes) == 1 for sizes in shapes) == is_shared
        assert len(set.union(*shapes)) > 3


@pytest.mark.parametrize("prefix", ["", "PSEUDO__"])
@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"RANDOM_FLIP": "flip"}, "RANDOM_FLIP", "'flip'"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "by_clip"}, "MIN_SIZE_TRAIN_SAMPLING", "'by_clip'"),
        ({"MIN_SIZE_TRAIN": (0,)}, "MIN_SIZE_TRAIN, ", "(0,)"),
        ({"MIN_SIZE_TRAIN": ()}, "MIN_SIZE_TRAIN, ", "()"),
        ({"MIN_SIZE_TRAIN": (9, 8), "MIN_SIZE_TRAIN_SAMPLING": "range"}, "MIN_SIZE", "(9, 8)"),
        ({"MAX_SIZE_TRAIN": 0}, "MIN_SIZE_TRAIN, MAX_SIZE_TRAIN", "and 0"),
        ({"AUGMENTATIONS": ["hue"]}, "AUGMENTATIONS", "'hue'"),
        ({"CROP__TYPE": "half"}, "CROP.TYPE", "'half'"),
        ({"CROP__TYPE": "absolute_range", "CROP__SIZE": (9, 8)}, "CROP.SIZE", "(9, 8)"),
        ({"CROP__TYPE": "absolute", "CROP__SIZE": (9, 0)}, "CROP.SIZE", "(9, 0)"),
        ({"CROP__SIZE": (0.5, 1.5)}, "CROP.SIZE", "(0.5, 1.5)"),
        ({"CROP__SIZE": (0.0, 0.5)}, "CROP.SIZE", "(0.0, 0.5)"),
    ],
)
def test_wrong_values_are_named(options: dict, key: str, value: str, prefix: str) -> None:
    build = build_pseudo_augmentation if prefix else build_clip_augmentation
    prefix = "" if key == "RANDOM_FLIP" else prefix
    options = {prefix + name: wrong for name, wrong in (options | {"CROP__ENABLED": True}).items()}
    with pytest.raises(ValueError) as error:
        build(config(**options))
    assert str(error.value).startswith(f"INPUT.{prefix.replace('__', '.')}{key}")
    assert value in str(error.value)
