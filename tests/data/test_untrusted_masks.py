"""Invalid masks. Most of them would make pycocotools crash the process."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from ovformer.data.files.untrusted_masks import (
    MAX_PIXELS,
    check_polygons,
    find_fault,
    is_frame_size,
    polygons_to_rle,
    runs_to_rle,
)
from support.masks import compressed_rle, uncompressed_rle

RUNS = [9, 2, 2, 2, 2, 2, 5]
GOOD = coco_mask.frPyObjects({"size": [4, 6], "counts": RUNS}, 4, 6)  # its counts are bytes
HOSTILE_RLES = {
    "its counts are empty": {"size": [4, 6], "counts": ""},
    "its counts are cut off": {"size": [4, 6], "counts": "9P"},
    "hold a character that no RLE has": {"size": [4, 6], "counts": "9\x7f"},
    "its counts are empty, or not": {"size": [4, 6], "counts": [9, 15]},
    "not the text": {"size": [4, 6], "counts": "é9"},
    "longer than any frame": {"size": [4, 6], "counts": "PPPPPP0"},
    "negative length": {"size": [4, 6], "counts": "9O"},
    "a run of no pixels": {"size": [9, 9], "counts": "n10c0"},
    "24 pixels does not cover a frame of 5 x 6": {**GOOD, "size": [5, 6]},
    "of 0 pixels does not cover a frame of 1 x 1": {"size": [1, 1], "counts": "0"},
    r"height, width\], got \[0, 6\]": {"size": [0, 6], "counts": "0"},
    r"got \[-4, -6\]": {**GOOD, "size": [-4, -6]},
    r"got \[1073741824, 1\]": {**GOOD, "size": [1 << 30, 1]},
    r"got \[4, 6, 1\]": {**GOOD, "size": [4, 6, 1]},
    "got '46'": {**GOOD, "size": "46"},
    "got None": {"counts": "9"},
    "got 5": 5,
    r"got \[4, 6\]": [4, 6],  # as the size of the others
}


@pytest.mark.parametrize(("reason", "rle"), HOSTILE_RLES.items(), ids=list(HOSTILE_RLES))
def test_hostile_rles(reason: str, rle: object) -> None:
    good = {**GOOD, "counts": GOOD["counts"].decode()}
    assert find_fault([]) is None and find_fault([good, GOOD, GOOD]) is None
    fault = find_fault([good, GOOD, rle, good])
    assert fault.index == 2
    with pytest.raises(ValueError, match=reason):
        raise ValueError(fault.reason)


@given(st.lists(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 70))), min_size=1))
def test_masks_of_pycocotools_are_valid(masks: list[np.ndarray]) -> None:
    rles = [compressed_rle(mask) for mask in masks]
    assert find_fault(rles) is None
    for mask, rle in zip(masks, rles, strict=True):
        again = runs_to_rle(rle["size"], uncompressed_rle(mask)["counts"])
        assert again["counts"].decode() == rle["counts"]


@given(st.lists(st.lists(st.integers(0, 2**21), min_size=1, max_size=9), min_size=1, max_size=5))
def test_runs_of_any_length(lists: list[list[int]]) -> None:
    lists = [[1, *counts] for counts in lists]
    sizes = [[sum(counts), 1] for counts in lists]
    rles = [runs_to_rle(size, counts) for size, counts in zip(sizes, lists, strict=True)]
    assert find_fault(rles) is None
    for number, rle in enumerate(rles):
        rle["size"] = [rle["size"][0] + 1, 1]
        assert find_fault(rles).index == number
        rle["size"] = [rle["size"][0] - 1, 1]


@pytest.mark.parametrize(
    "counts",
    [[], [-1, 25], [24.0], ["9", 15], [[24]], [2**40, 24], [10**30], [True], [9]],
    ids=str,
)
def test_hostile_runs(counts: list) -> None:
    with pytest.raises(ValueError, match="counts of an RLE|RLE of 9 pixels|RLE of 1099511627800 "):
        runs_to_rle([4, 6], counts)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20).filter(any))
def test_empty_runs_are_dropped(counts: list[int]) -> None:
    pixels = np.repeat(np.arange(len(counts)) % 2, counts).astype(np.uint8)
    rle = runs_to_rle([len(pixels), 1], counts)
    assert find_fault([rle]) is None
    assert rle == coco_mask.encode(np.asfortranarray(pixels[:, None]))


def test_frame_sizes() -> None:
    assert is_frame_size([1, 1]) and is_frame_size((8192, 8192)) and 8192 * 8192 == MAX_PIXELS
    for size in ([8192, 8193], [0, 5], [True, 5], [4.0, 6], [4], "46", None, [2**70, 1]):
        assert not is_frame_size(size)


HOSTILE_POLYGONS = [
    ("expected a list of polygons or an RLE", [], "abcdef"),
    ("flat list of numbers", [5], [["a"] * 6], [[[1] * 6]], [[10**400] * 6]),
    ("polygon of 4 numbers", [[1] * 4]),
    ("polygon of 7 numbers", [[1] * 7]),
    ("coordinate nan, which is not finite", [[float("nan"), 1, 2, 3, 4, 5]]),
    ("coordinate inf, which is not finite", [[float("inf"), 1, 2, 3, 4, 5]]),
    ("far out of the frame", [[1e300, 1, 2, 3, 4, 5]], [[1] * 6, [-1e5, 1, 2, 3, 4, 5]]),
    ("too long to be real", [[0, 0, 90, 90] * 1000]),
]


@pytest.mark.parametrize(("reason", "examples"), [(r, e) for r, *e in HOSTILE_POLYGONS])
def test_hostile_polygons(reason: str, examples: list) -> None:
    for polygons in examples:
        with pytest.raises(ValueError, match=reason):
            check_polygons(polygons, 4, 6)


def test_polygons_in_a_frame_that_cannot_be() -> None:
    for size in ((0, 6), (8192, 8193)):
        with pytest.raises(ValueError, match="expected a frame of height x width pixels"):
            check_polygons([[0] * 6], *size)


def test_polygons_may_reach_out_of_the_frame_but_not_far() -> None:
    polygons = [[-3, -3, 9, -3, 9, 9, -3, 9], np.array([1.0, 1, 2, 1, 2, 2])]
    check_polygons(polygons, 4, 6)
    assert coco_mask.area(polygons_to_rle(polygons, 4, 6)) == 24
    # After a transform that enlarges too much.
    with pytest.raises(ValueError, match="far out of the frame"):
        polygons_to_rle([np.array([1, 1, 1e9, 1, 2, 2])], 100, 100)
    with pytest.raises(ValueError, match="too long to be real"):
        polygons_to_rle([np.array([0, 0, 1e6, 1e6] * 20)], 100, 100)


@pytest.mark.slow
def test_pycocotools_crashes_on_unchecked_masks() -> None:
    """If this test fails, pycocotools has become safer, and the checks may be relaxed."""
    size = [2**31 - 1, 2**31 - 1]
    line = f"from pycocotools import mask as m; m.decode({{'size': {size}, 'counts': 'h0'}})"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True).returncode < 0
