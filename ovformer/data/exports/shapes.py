"""The shapes that annotation tools draw on a frame, and their masks.

Coordinates are pixels from the left and upper edge of the frame; the first pixel covers 0 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.files.untrusted_masks import find_fault, is_frame_size
from ovformer.data.files.vis_json import to_rle

# Corners of the polygon that approximates an ellipse.
_ELLIPSE_CORNERS = 72


@dataclass(frozen=True)
class Box:
    """A rectangle, perhaps rotated.

    Attributes:
        x: of its left edge before the rotation.
        y: of its upper edge before the rotation.
        width: pixels.
        height: pixels.
        rotation: degrees, clockwise.
        pivot: the fixed point: the centre (CVAT), or the upper left corner (Label Studio).
    """

    x: float
    y: float
    width: float
    height: float
    rotation: float = 0.0
    pivot: Literal["centre", "corner"] = "centre"

    def __post_init__(self) -> None:
        values = (self.x, self.y, self.width, self.height, self.rotation)
        if not all(map(math.isfinite, values)) or min(self.width, self.height) < 0:
            raise ValueError(f"expected finite numbers and no negative size, got a box {values}")

    def scaled(self, x: float, y: float) -> "Box":
        """Return the box with its sides multiplied, for example from percents to pixels."""
        return replace(
            self, x=self.x * x, y=self.y * y, width=self.width * x, height=self.height * y
        )

    def between(self, other: "Box", ratio: float) -> "Box":
        """Interpolate to another box as the annotation tools do; ``ratio`` is 0 here, 1 there."""
        turn = other.rotation - self.rotation
        if self.pivot == "centre":  # CVAT turns the shorter way
            turn = (turn + 180) % 360 - 180
        return Box(
            *(
                getattr(self, key) + (getattr(other, key) - getattr(self, key)) * ratio
                for key in ("x", "y", "width", "height")
            ),
            rotation=self.rotation + turn * ratio,
            pivot=self.pivot,
        )

    def segmentation(self, height: int, width: int) -> list[list[float]]:
        """Return the area as COCO's polygons, which may reach out of the frame."""
        across = np.array([0, self.width, self.width, 0])
        down = np.array([0, 0, self.height, self.height])
        if self.pivot == "centre":
            across, down = across - self.width / 2, down - self.height / 2
        angle = math.radians(self.rotation)
        xs = across * math.cos(angle) - down * math.sin(angle) + self.x
        ys = across * math.sin(angle) + down * math.cos(angle) + self.y
        if self.pivot == "centre":
            xs, ys = xs + self.width / 2, ys + self.height / 2
        return [np.stack([xs, ys], axis=1).ravel().tolist()]


@dataclass(frozen=True)
class Region:
    """An area.

    Attributes:
        area: COCO's segmentation: polygons, or an RLE, compressed or not.
    """

    area: list | dict

    def __post_init__(self) -> None:
        if isinstance(self.area, dict) and not _is_rle(self.area):
            raise ValueError(
                "expected an RLE: size, height and width, and counts, a text or a list of numbers"
            )

    def between(self, other: "Region", ratio: float) -> "Region":
        """Interpolate to another polygon; ``ratio`` is 0 here and 1 there.

        Raises:
            ValueError: an area is a mask, or the polygons have different numbers of points.
        """
        polygons = (self.area, other.area)
        lengths = [len(p[0]) if isinstance(p, list) and len(p) == 1 else None for p in polygons]
        if None in lengths:
            raise ValueError("masks between key frames can't be computed")
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"polygons of {lengths[0] // 2} and {lengths[1] // 2} points: the polygons between "
                "them can't be computed as the tool does"
            )
        start, end = (np.asarray(p[0]) for p in polygons)
        return Region([(start + (end - start) * ratio).tolist()])

    def segmentation(self, height: int, width: int) -> list | dict:
        """Return the area, after checking that an RLE is one of this frame."""
        if isinstance(self.area, dict) and list(self.area["size"]) != [height, width]:
            raise ValueError(
                f"an RLE of {self.area['size'][0]} x {self.area['size'][1]} pixels (height x "
                f"width) in a frame of {height} x {width}"
            )
        return self.area


@dataclass(frozen=True)
class CroppedMask:
    """A mask inside a rectangle of the frame, as CVAT writes it.

    Attributes:
        left: first column of the rectangle.
        top: first row.
        width: columns.
        height: rows.
        runs: lengths of runs of pixels, row by row, alternately outside and inside.
    """

    left: int
    top: int
    width: int
    height: int
    runs: np.ndarray

    def __post_init__(self) -> None:
        if min(self.left, self.top, self.width - 1, self.height - 1, self.runs.min(initial=0)) < 0:
            raise ValueError("a mask with a negative number")
        total = sum(self.runs.tolist())  # Python's integers do not overflow
        if total != self.width * self.height:
            raise ValueError(
                f"a mask with runs of {total} pixels in a rectangle of {self.height} x "
                f"{self.width} (height x width)"
            )

    def between(self, other: "CroppedMask", ratio: float) -> "CroppedMask":
        """Raise ValueError: a mask can't be interpolated."""
        raise ValueError("masks between key frames can't be computed")

    def segmentation(self, height: int, width: int) -> dict:
        """Return the RLE of the whole frame.

        Raises:
            ValueError: the rectangle reaches out of the frame.
        """
        right, bottom = self.left + self.width, self.top + self.height
        if right > width or bottom > height:
            raise ValueError(
                f"a mask in columns {self.left} to {right} and rows {self.top} to {bottom} of a "
                f"frame of {height} x {width} (height x width)"
            )
        frame = np.zeros((height, width), np.uint8, order="F")
        inside = np.arange(len(self.runs)) % 2
        cropped = np.repeat(inside, self.runs).reshape(self.height, self.width)
        frame[self.top : bottom, self.left : right] = cropped
        return coco_mask.encode(frame)


Shape = Box | Region | CroppedMask


def make_polygon(points: Sequence[float] | np.ndarray) -> Region:
    """Return the area inside a polygon.

    Args:
        points: (P, 2), or flat: x and y in turn.

    Raises:
        ValueError: fewer than three points, half a point, or a number that is not finite.
    """
    flat = np.asarray(points, dtype=np.float64).ravel()
    if flat.size < 6 or flat.size % 2 or not np.isfinite(flat).all():
        raise ValueError(
            f"a polygon has three or more points of two finite numbers, got {flat.tolist()[:20]}"
        )
    return Region([flat.tolist()])


def make_ellipse(x: float, y: float, radii: tuple[float, float], rotation: float) -> Region:
    """Return the area inside an ellipse, approximated by a polygon of 72 corners.

    Args:
        x: of the centre.
        y: of the centre.
        radii: along its own horizontal and vertical axis.
        rotation: degrees, clockwise.
    """
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_CORNERS, endpoint=False)
    across, down = radii[0] * np.cos(angles), radii[1] * np.sin(angles)
    turn = math.radians(rotation)
    xs = x + across * math.cos(turn) - down * math.sin(turn)
    ys = y + across * math.sin(turn) + down * math.cos(turn)
    return make_polygon(np.stack([xs, ys], axis=1))


def merge_shapes(shapes: Sequence[Shape], height: int, width: int) -> dict | None:
    """Draw shapes as one mask.

    Args:
        shapes: parts of one object in one frame.
        height: of the frame.
        width: of the frame.

    Returns:
        A compressed RLE, or None if they cover no pixel.

    Raises:
        ValueError: a mask belongs to a frame of another size, or a shape is far from the frame.
    """
    rles = []
    for shape in shapes:
        rle = to_rle(shape.segmentation(height, width), height, width)
        # An RLE from the file is not checked yet, and the next call trusts it.
        if fault := find_fault([rle]):
            raise ValueError(fault.reason)
        if coco_mask.area(rle):
            rles.append(rle)
    return to_rle(coco_mask.merge(rles), height, width) if rles else None


def _is_rle(area: dict) -> bool:
    return is_frame_size(area.get("size")) and isinstance(area.get("counts"), str | bytes | list)
