"""Checks masks from files before pycocotools gets them.

Its C code trusts its input: a run-length code (RLE) that does not cover its frame makes it read
foreign memory or never end, and a distant point makes it write outside its memory. An empty run
after the first one ends its comparisons of masks too early. So all masks from files are checked
here: compressed and uncompressed RLEs, and polygons.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

# Pixels of a frame, 8192 x 8192. For larger ones, pycocotools 2.0.11 can write beyond its memory
# for a compressed text, when four runs need six digits each.
MAX_PIXELS = 1 << 26
# Largest distance of a polygon's point from the corner of the frame, and largest length of its
# outline, as multiples of the frame's longer side.
_MAX_REACH = 16
_MAX_LENGTH = 4096
# Most pixels of any outline, also after an image is enlarged: each takes 40 bytes or more.
_MAX_OUTLINE = 1 << 24
# Most digits of a run in a compressed RLE, of 5 bits each: more than MAX_PIXELS needs, and as many
# as the C code can read.
_MAX_DIGITS = 6


class Fault(NamedTuple):
    """The error of a mask: its place among the masks, and the reason."""

    index: int
    reason: str


def is_frame_size(size: object) -> bool:
    """Return whether a value is [height, width] in whole pixels, of at most MAX_PIXELS."""
    return (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
        and size[0] * size[1] <= MAX_PIXELS
    )


def check_num_pixels(what: str, height: int, width: int) -> None:
    """Raise ValueError, which begins with ``what``, if a frame has more than MAX_PIXELS."""
    if not is_frame_size([height, width]):
        raise ValueError(f"{what} has {height} x {width} pixels; at most {MAX_PIXELS} are allowed.")


def find_fault(rles: Iterable[object]) -> Fault | None:
    """Look for a value that is not a compressed RLE, or does not cover its frame exactly.

    Only the first run may be empty; pycocotools writes no other empty run.

    COCO's code writes a number as digits of 5 bits, lowest first. Bit 5 of a digit says that
    another one follows, and bit 4 of the last digit is the sign. From the fourth run on, the number
    is the difference to the run before last.

    Args:
        rles: any values; repeated ones are checked once.

    Returns:
        The place of a wrong value, counted from 0, and the reason; None if all are valid.
    """
    places: dict[tuple, int] = {}
    known = None
    for index, rle in enumerate(rles):
        if not isinstance(rle, dict):
            return Fault(index, f"expected an RLE with size [height, width], got {rle!r:.60}")
        size = rle.get("size")
        if known is None or size != known:
            if not is_frame_size(size):
                return Fault(index, f"expected an RLE with size [height, width], got {size!r:.60}")
            known = size
        counts = rle.get("counts")
        if not isinstance(counts, str | bytes) or not counts or not counts.isascii():
            return Fault(index, "its counts are empty, or not the text of a compressed RLE")
        places.setdefault((counts, *size), index)
    if not places:
        return None
    # Tubes repeat masks (empty ones above all), so each text is decoded once.
    first_use = list(places.values())
    texts, heights, widths = zip(*places, strict=True)
    fault = _find_faulty_counts(texts, np.array(heights), np.array(widths))
    return fault and Fault(first_use[fault.index], fault.reason)


def _find_faulty_counts(
    texts: Sequence[str | bytes], heights: np.ndarray, widths: np.ndarray
) -> Fault | None:
    """Check the counts of N RLEs for :func:`find_fault`.

    All texts are read at once: arrays have an element for each character, or for each run.

    Args:
        texts: the counts, none of them empty.
        heights: of their frames, (N,).
        widths: of their frames, (N,).
    """
    raw = b"".join(text.encode("ascii") if isinstance(text, str) else text for text in texts)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    # A character below "0" wraps around to a code that is too large.
    codes = np.frombuffer(raw, np.uint8) - np.uint8(48)
    last = np.flatnonzero(codes < 32)  # the last digit of each number
    first_run = np.searchsorted(last, ends - lengths)

    def find_text(runs: np.ndarray) -> int:
        """Return the text of the first run that is marked."""
        return int(np.searchsorted(first_run, runs.argmax(), side="right")) - 1

    foreign, cut_off = codes > 63, codes[ends - 1] > 31
    if foreign.any() or cut_off.any():
        place = np.searchsorted(ends, foreign.argmax(), side="right")
        index = int(place if foreign.any() else cut_off.argmax())
        return Fault(index, "its counts are cut off, or hold a character that no RLE has")
    # The order of the checks matters: each may rely on what the one before has refused.
    if (too_long := np.diff(last, prepend=-1) > _MAX_DIGITS).any():
        return Fault(find_text(too_long), "it has a run that is longer than any frame")
    runs = _decode_runs(_decode_numbers(codes, last), first_run)
    if (negative := runs < 0).any():
        return Fault(find_text(negative), "it has a run of negative length")
    empty = runs == 0
    empty[first_run] = False
    if empty.any():
        reason = "it has a run of no pixels: pycocotools.mask.encode writes the mask without it"
        return Fault(find_text(empty), reason)
    totals = np.add.reduceat(runs, first_run, dtype=np.int64)
    if (wrong := totals != heights * widths).any():
        index = int(wrong.argmax())
        frame = f"{heights[index]} x {widths[index]}"
        return Fault(index, f"an RLE of {totals[index]} pixels does not cover a frame of {frame}")
    return None


def _decode_numbers(codes: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Decode digits, uint8 from 0 to 63, into numbers, (R,) int32.

    Args:
        codes: the digits; the last one ends a number.
        last: the places of the last digits of the R numbers.
    """
    numbers = (codes[last].astype(np.int32) ^ 16) - 16  # with its sign
    before = codes[last - 1]
    longer = before > 31
    numbers = np.where(longer, (numbers << 5) + (before & 31), numbers)
    rest = np.flatnonzero(longer)
    for digit in range(2, _MAX_DIGITS):
        before = codes[last[rest] - digit]
        rest, before = rest[before > 31], before[before > 31]
        numbers[rest] = (numbers[rest] << 5) + (before & 31)
    return numbers


def _decode_runs(values: np.ndarray, first_run: np.ndarray) -> np.ndarray:
    """Return the lengths of all runs, int32. Overflows wrap around, as in the C code.

    Args:
        values: the numbers that the texts hold, int32; changed in place.
        first_run: the place of the first one of each text.
    """
    # A number is the difference to the run before last, so runs are sums over every second number.
    # The first run of a text is no such sum, and is set aside. The sums do not stop between texts,
    # so the sum before each text is subtracted again.
    very_first = values[first_run]
    values[first_run] = 0
    runs = np.zeros(len(values) + 2, np.int32)
    for start in (0, 1):
        np.cumsum(values[start::2], dtype=np.int32, out=runs[2 + start :: 2])
    before = runs[first_run], runs[first_run + 1]
    runs = runs[2:]
    past_end = np.append(first_run[1:], len(values))
    for start in (0, 1):
        # One of the two sums of each text belongs to the runs of this parity.
        own = np.where(first_run % 2 == start, *before)
        runs[start::2] -= np.repeat(own, (past_end + 1 - start) // 2 - (first_run + 1 - start) // 2)
    runs[first_run] = very_first
    return runs


def runs_to_rle(size: object, counts: list) -> dict[str, Any]:
    """Compress an RLE whose counts are a list. Empty runs are dropped.

    Raises:
        ValueError: the counts are not whole numbers, or do not cover a frame of that size.
    """
    if not is_frame_size(size):
        raise ValueError(f"expected an RLE with size [height, width], got {size!r:.60}")
    try:
        runs = np.array(counts)
    except (OverflowError, ValueError) as error:
        raise ValueError("the counts of an RLE have to be a flat list of numbers") from error
    if runs.ndim != 1 or runs.dtype != np.int64 or not runs.size or runs.min() < 0:
        raise ValueError("the counts of an RLE have to be whole numbers, 0 or more")
    height, width = size
    if runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(
            f"an RLE of {sum(counts)} pixels does not cover a frame of {height} x {width}"
        )
    counts = _without_empty_runs(counts)
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _without_empty_runs(counts: list[int]) -> list[int]:
    """Return the runs of the same mask, where only the first one may be empty."""
    runs = counts[:1]
    joins = False  # whether the next run extends the last one
    for count in counts[1:]:
        if joins:
            runs[-1] += count
        elif count:
            runs.append(count)
        joins = not joins and not count
    return runs


def check_polygons(polygons: object, height: int, width: int) -> None:
    """Check the polygons of a mask.

    Args:
        polygons: a list with a flat list or array of x and y for each.
        height: of the frame, in pixels.
        width: of the frame, in pixels.

    Raises:
        ValueError: there is no polygon, or one is not valid or far away from the frame.
    """
    if not isinstance(polygons, list) or not polygons:
        raise ValueError(f"expected a list of polygons or an RLE, got {polygons!r:.60}")
    if not is_frame_size([height, width]):
        raise ValueError(f"expected a frame of height x width pixels, got {height} x {width}")
    side = max(height, width)
    for polygon in polygons:
        if not isinstance(polygon, np.ndarray | list):
            raise ValueError("expected a polygon that is a flat list of numbers")
        points = _as_points(polygon)
        if points.size < 6 or points.size % 2:
            raise ValueError(
                f"expected x and y of at least three points, got a polygon of {points.size} numbers"
            )
        _check_outline(points, _MAX_REACH * side, min(_MAX_LENGTH * side, _MAX_OUTLINE // 4))


def polygons_to_rle(polygons: Sequence, height: int, width: int) -> dict[str, Any]:
    """Draw polygons as one mask.

    Args:
        polygons: N flat sequences of x and y, which :func:`check_polygons` accepts. They may have
            been transformed since.
        height: of the frame, in pixels.
        width: of the frame, in pixels.

    Raises:
        ValueError: a polygon is too long or too far away to be drawn.
    """
    # Checked again: an augmentation may have enlarged what was valid in the file.
    for polygon in polygons:
        _check_outline(_as_points(polygon), _MAX_OUTLINE, _MAX_OUTLINE)
    return coco_mask.merge(coco_mask.frPyObjects(list(polygons), height, width))


def _as_points(polygon: Sequence) -> np.ndarray:
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError("expected a polygon that is a flat list of numbers") from error
    if points.ndim != 1:
        raise ValueError("expected a polygon that is a flat list of numbers")
    return points


def _check_outline(points: np.ndarray, reach: float, length: float) -> None:
    """Check that no coordinate is beyond ``reach``, and the outline no longer than ``length``."""
    farthest = np.abs(points).max()
    if not farthest <= reach:  # this way round NaN is an error as well
        raise ValueError(
            f"a polygon has the coordinate {farthest}, which is not finite or far out of the frame"
        )
    if points.size * farthest > length:  # an upper bound that spares most polygons the exact sum
        steps = np.abs(np.diff(points.reshape(-1, 2), axis=0))
        if (found := steps.max(axis=1).sum()) > length:
            raise ValueError(f"a polygon has an outline of {found:.0f} pixels, too long to be real")
