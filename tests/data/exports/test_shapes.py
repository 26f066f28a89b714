"""Shapes become the masks that were drawn; what is between two key frames lies between them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from ovformer.data.exports.shapes import (
    Box,
    CroppedMask,
    Region,
    make_ellipse,
    make_polygon,
    merge_shapes,
)
from support.masks import run_lengths

SIZE = (40, 50)
COORDINATE = st.floats(-20, 60, allow_nan=False)
SIDE = st.floats(0, 50, allow_nan=False)
BOXES = st.builds(Box, COORDINATE, COORDINATE, SIDE, SIDE, st.floats(-360, 360))
MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(*shapes) -> np.ndarray:
    rle = merge_shapes(shapes, *SIZE)
    return np.zeros(SIZE, bool) if rle is None else coco_mask.decode(rle) > 0


@given(MASKS, st.integers(0, 20), st.integers(0, 20))
def test_a_cropped_mask_comes_back(mask: np.ndarray, left: int, top: int) -> None:
    height, width = mask.shape
    shape = CroppedMask(left, top, width, height, np.array(run_lengths(mask)))
    expected = np.zeros(SIZE, bool)
    expected[top : top + height, left : left + width] = mask
    np.testing.assert_array_equal(drawn(shape), expected)


@given(BOXES, BOXES, st.floats(0, 1))
def test_a_box_between_two(one: Box, other: Box, ratio: float) -> None:
    between = one.between(other, ratio)
    for key in ("x", "y", "width", "height"):
        ends = sorted([getattr(one, key), getattr(other, key)])
        assert ends[0] - 1e-9 <= getattr(between, key) <= ends[1] + 1e-9
    assert abs(between.rotation - one.rotation) <= 180 + 1e-9
    assert one.between(other, 0) == one


def test_rotation_goes_the_shorter_way_in_cvat_and_straight_in_label_studio() -> None:
    for pivot, expected in (("centre", 360), ("corner", 180)):
        one, other = (Box(0, 0, 4, 4, angle, pivot) for angle in (350, 10))
        assert one.between(other, 0.5).rotation == expected


def test_a_quarter_turn() -> None:
    # 4 wide and 8 high; clockwise about the centre (20, 14), or about the upper left corner.
    for pivot, rows, columns in (
        ("centre", slice(12, 16), slice(16, 24)),
        ("corner", slice(10, 14), slice(10, 18)),
    ):
        expected = np.zeros(SIZE, bool)
        expected[rows, columns] = True
        np.testing.assert_array_equal(drawn(Box(18, 10, 4, 8, 90, pivot)), expected)


def test_shapes_that_cannot_be_interpolated() -> None:
    triangle, square = make_polygon([0, 0, 4, 0, 4, 4]), make_polygon([0, 0, 4, 0, 4, 4, 0, 4])
    mask = CroppedMask(0, 0, 2, 2, np.array([0, 4]))
    with pytest.raises(ValueError, match="3 and 4 points"):
        triangle.between(square, 0.5)
    for one in (Region({"size": [2, 2], "counts": [0, 4]}), mask):
        with pytest.raises(ValueError, match="masks between key frames"):
            one.between(one, 0.5)


def test_an_ellipse_has_the_area_of_an_ellipse() -> None:
    area = drawn(make_ellipse(25, 20, (16, 9), 0)).sum()
    assert area == pytest.approx(np.pi * 16 * 9, rel=0.02)
    turned = drawn(make_ellipse(25, 20, (16, 9), 90))
    assert turned[5:35].any(axis=1).all() and not turned[:, :14].any()


def test_parts_are_one_mask_and_nothing_is_none() -> None:
    both = drawn(Box(0, 0, 4, 4), make_polygon([10, 10, 20, 10, 20, 20, 10, 20]))
    assert both.sum() == 16 + 100
    assert merge_shapes([], *SIZE) is None
    assert merge_shapes([Box(3, 3, 0, 0)], *SIZE) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(0, 0, float("nan"), 1), "finite"),
        (lambda: Box(0, 0, -1, 1), "no negative size"),
        (lambda: make_polygon([1, 2, 3, 4]), "three or more points"),
        (lambda: make_polygon([1, 2, 3, 4, 5, float("inf")]), "finite"),
        (lambda: CroppedMask(0, 0, 3, 3, np.array([4, 4])), "runs of 8 pixels .* 3 x 3"),
        (lambda: CroppedMask(-1, 0, 2, 2, np.array([0, 4])), "negative"),
        (lambda: drawn(CroppedMask(48, 0, 4, 1, np.array([0, 4]))), "columns 48 to 52"),
        (lambda: drawn(make_polygon([0, 0, 1e9, 0, 1e9, 1e9])), "far out of the frame"),
        (lambda: CroppedMask(0, 0, 2, 2, np.array([2**63 - 1, 2**63 - 1, 6])), "runs of 1844"),
        (lambda: drawn(Region({"size": list(SIZE), "counts": [2**70]})), "whole numbers"),
        (lambda: drawn(Region({"size": [2, 2], "counts": [0, 4]})), "RLE of 2 x 2"),
        (lambda: drawn(Region({"size": list(SIZE), "counts": [0, 4]})), "4 pixels does not cover"),
    ],
)
def test_invalid_shapes(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
