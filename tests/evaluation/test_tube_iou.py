import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.evaluation.tube_iou import mean_areas, tube_areas, tube_iou
from support.masks import compressed_rle as encode


@st.composite
def tubes(draw) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of tubes, bool (D, T, H, W) and (G, T, H, W), from empty to full."""
    frames, height, width = (draw(st.integers(1, 7)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = frames, height, width
    sets = []
    for _ in range(2):
        count = draw(st.integers(0, 4))
        density = rng.choice([0, 0.1, 0.5, 0.9, 1], (count, frames, 1, 1))
        sets.append(rng.random((count, *shape)) < density)
    return sets[0], sets[1]


@settings(max_examples=150, deadline=None)
@given(tubes(), st.booleans())
def test_equals_iou_of_pixels(masks: tuple[np.ndarray, np.ndarray], null: bool) -> None:
    predictions, targets = (
        [[None if null and not m.any() else encode(m) for m in tube] for tube in side]
        for side in masks
    )
    a, b = (side.reshape(len(side), np.prod(side.shape[1:])).astype(float) for side in masks)
    intersection = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1) - intersection
    expected = np.where(union > 0, intersection / np.maximum(union, 1), 0)
    np.testing.assert_array_equal(tube_iou(predictions, targets), expected)


def test_large_masks_are_exact() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 700, 900)) < 0.5
    expected = (a & b).sum() / (a | b).sum()
    assert tube_iou([[encode(m) for m in a]], [[encode(m) for m in b]])[0, 0] == expected


def test_masks_of_different_size() -> None:
    a, b = np.ones((3, 4), dtype=bool), np.ones((6, 5), dtype=bool)
    half = b.copy()
    half[:3] = False
    assert tube_iou([[encode(a), encode(half)]], [[encode(a), encode(b)]])[0, 0] == 27 / 42
    with pytest.raises(ValueError, match=r"Frame 1: a predicted mask of size \[3, 4\]"):
        tube_iou([[None, encode(a)]], [[encode(b), encode(b)]])


def test_areas_count_visible_frames_only() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    areas = tube_areas([[encode(~mask), None, encode(mask)], [None] * 3], 3)
    np.testing.assert_array_equal(areas, [[20, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(mean_areas(areas), [20, 0])
    assert tube_areas([], 3).shape == (0, 3)
    many = [[encode(np.ones((1, n + 1))) for n in range(300)], [None] * 300]
    np.testing.assert_array_equal(tube_areas(many, 300)[0], np.arange(1, 301))
