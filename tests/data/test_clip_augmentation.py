"""Augmentations that the frames of a clip share, and those of each copy of an image."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode
from ovformer.d2 import transforms as T
from ovformer.data.samples.clip_augmentation import (
    ClipAugmentation,
    build_clip_augmentation,
    build_pseudo_augmentation,
)

COLOURS = ["brightness", "contrast", "saturation"]


def config(**options: object) -> CfgNode:
    """A config with other values of keys below INPUT; "__" stands for the dot."""
    pairs = {"INPUT." + key.replace("__", "."): value for key, value in options.items()}
    return get_ovformer_cfg(None, [*itertools.chain(*pairs.items())])


def frames(count: int, seed: int = 0, size: tuple[int, int] = (24, 36)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def augment(augmentation: ClipAugmentation, clip: list[np.ndarray], seed: int) -> tuple:
    np.random.seed(seed)
    return augmentation(clip)


@given(seed=st.integers(0, 2**31 - 1), extra=st.sets(st.sampled_from([*COLOURS, "rotation"])))
def test_frames_of_a_video_are_augmented_alike(seed: int, extra: set[str]) -> None:
    """Each frame comes out as if all frames had been copies of it."""
    augmentation = build_clip_augmentation(
        config(
            AUGMENTATIONS=sorted(extra - {"contrast"}),  # which looks at the first frame's mean
            CROP__ENABLED=True,
            CROP__TYPE="absolute_range",
            CROP__SIZE=(12, 20),
            MIN_SIZE_TRAIN=(16, 20),
            RANDOM_FLIP="flip_by_clip",
        )
    )
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
    augmentation = build_clip_augmentation(
        config(AUGMENTATIONS=[name], MIN_SIZE_TRAIN=(24,), RANDOM_FLIP="none")
    )
    grey, red = np.full((24, 36, 3), 90, np.uint8), np.zeros((24, 36, 3), np.uint8)
    red[..., 0] = 200
    (first, second), _ = augment(augmentation, [red, grey], 5)
    assert not np.array_equal(first, red)
    if name == "saturation":  # a grey frame has none: nothing of the red one may show in it
        assert np.array_equal(second, grey)
    else:
        assert not np.array_equal(second, grey) and len(np.unique(second)) == 1


@given(seed=st.integers(0, 2**31 - 1))
def test_copies_of_an_image_are_augmented_each_in_its_own_way(seed: int) -> None:
    augmentation = build_pseudo_augmentation(config(PSEUDO__MIN_SIZE_TRAIN=(16, 17, 18, 19, 20)))
    (frame,) = frames(1, size=(64, 96))
    images, transforms = augment(augmentation, [frame] * 4, seed)
    points = {tuple(t.apply_coords(np.array([[30.0, 20.0]]))[0]) for t in transforms}
    assert len(points) == 4
    assert all(16 <= min(image.shape[:2]) <= 20 for image in images)
    again, _ = augment(augmentation, [frame] * 4, seed)
    assert all(np.array_equal(a, b) for a, b in zip(images, again, strict=True))
    # The last copy depends on the seed and on its place only.
    fewer, _ = augment(augmentation, [frame] * 2, seed)
    assert np.array_equal(fewer[1], images[1])


def is_mirrored(transforms: T.TransformList) -> bool:
    left, right = transforms.apply_coords(np.array([[1.0, 5.0], [9.0, 5.0]]))
    return bool(left[0] > right[0])


def test_copies_share_the_flip() -> None:
    augmentation = build_pseudo_augmentation(config(RANDOM_FLIP="flip_by_clip"))
    found = set()
    for seed in range(20):
        _, transforms = augment(augmentation, frames(1, size=(64, 96)) * 3, seed)
        mirrored = {is_mirrored(transform) for transform in transforms}
        assert len(mirrored) == 1
        found |= mirrored
    assert found == {True, False}


def test_copies_may_share_the_resize() -> None:
    still = {"PSEUDO__CROP__ENABLED": False, "PSEUDO__AUGMENTATIONS": []}
    sizes = {"PSEUDO__MIN_SIZE_TRAIN": (16, 40)}
    per_clip = {}
    for style in ("range", "range_by_clip"):
        augmentation = build_pseudo_augmentation(
            config(**still, **sizes, PSEUDO__MIN_SIZE_TRAIN_SAMPLING=style)
        )
        clips = [augment(augmentation, frames(1) * 3, seed)[0] for seed in range(10)]
        per_clip[style] = [{image.shape for image in clip} for clip in clips]
    assert max(len(shapes) for shapes in per_clip["range"]) > 1
    assert all(len(shapes) == 1 for shapes in per_clip["range_by_clip"])
    assert len(set.union(*per_clip["range_by_clip"])) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"RANDOM_FLIP": "flip"}, "INPUT.RANDOM_FLIP: unknown flip 'flip'"),
        ({"MIN_SIZE_TRAIN_SAMPLING": "by_clip"}, r"INPUT.MIN_SIZE_TRAIN_SAMPLING: unknown 'by_cl"),
        ({"MIN_SIZE_TRAIN": (0,)}, r"INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN: .* got \(0,\)"),
        (
            {"MIN_SIZE_TRAIN": (9, 8), "MIN_SIZE_TRAIN_SAMPLING": "range"},
            r"expected the smallest and the largest of the short edge's sizes .* got \(9, 8\)",
        ),
        ({"MAX_SIZE_TRAIN": 0}, "MAX_SIZE_TRAIN: .* and 0"),
        ({"AUGMENTATIONS": ["hue"]}, "INPUT.AUGMENTATIONS: unknown augmentation 'hue'"),
        ({"CROP__ENABLED": True, "CROP__TYPE": "half"}, "INPUT.CROP.TYPE: unknown 'half'. Known"),
        (
            {"CROP__ENABLED": True, "CROP__TYPE": "absolute_range", "CROP__SIZE": (9, 8)},
            r"INPUT.CROP.SIZE: expected two sizes of at least 1 pixel, the smaller one first",
        ),
        (
            {"CROP__ENABLED": True, "CROP__SIZE": (0.5, 1.5)},
            r"INPUT.CROP.SIZE: expected two shares above 0 and up to 1 for relative_range",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "PSEUDO__"])
def test_wrong_values_are_named(options: dict, message: str, prefix: str) -> None:
    if prefix and "RANDOM_FLIP" not in options:
        options = {prefix + key: value for key, value in options.items()}
        message = message.replace("INPUT.", "INPUT.PSEUDO.")
    build = build_pseudo_augmentation if prefix else build_clip_augmentation
    with pytest.raises(ValueError, match=message):
        build(config(**options))
