"""The masks of one image's instances, as bitmaps or as polygons.

Legend: N instances, H W pixels.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from ovformer.d2.builtin.boxes import Boxes

Polygons = list[np.ndarray]


def polygons_to_bitmask(polygons: Polygons, height: int, width: int) -> np.ndarray:
    """Rasterise the polygons of one instance as COCO does.

    Args:
        polygons: each flat, (x0, y0, x1, y1, ...) in pixels; none gives an empty mask.
        height: of the mask, in pixels.
        width: of the mask, in pixels.

    Returns:
        bool (height, width).
    """
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    return mask_util.decode(rle).astype(bool)


class BitMasks:
    """N bitmaps of one size.

    Attributes:
        tensor: bool (N, H, W).
        image_size: (H, W).
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        """Take masks of shape (N, H, W); non-zero is inside."""
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.bool)
        if tensor.dim() != 3:
            raise AssertionError(f"BitMasks: expected shape (N, H, W), got {tuple(tensor.shape)}")
        self.tensor = tensor
        self.image_size = tensor.shape[1:]

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """Return the masks on another device; arguments as of :meth:`torch.Tensor.to`."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Where the masks are."""
        return self.tensor.device

    def nonempty(self) -> Tensor:
        """Return bool (N,): whether a mask has any pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[Polygons]", height: int, width: int
    ) -> "BitMasks":
        """Rasterise polygons.

        Args:
            polygon_masks: the polygons of each instance.
            height: of the masks, in pixels.
            width: of the masks, in pixels.
        """
        masks = torch.zeros(len(polygon_masks), height, width, dtype=torch.bool)
        for mask, polygons in zip(masks, polygon_masks, strict=True):
            mask.copy_(torch.from_numpy(polygons_to_bitmask(polygons, height, width)))
        return BitMasks(masks)

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight box of each mask, on the CPU; zeros for an empty mask."""
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        low = [_first_true(columns), _first_true(rows)]
        high = [side.shape[1] - _first_true(side.flip(1)) for side in (columns, rows)]
        boxes = torch.stack(low + high, dim=1).float()
        boxes[~self.nonempty()] = 0
        return Boxes(boxes.cpu())

    @staticmethod
    def cat(bitmasks_list: Sequence["BitMasks"]) -> "BitMasks":
        """Concatenate masks of one size."""
        if len(bitmasks_list) == 0:
            raise AssertionError("BitMasks.cat: expected at least one object")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks":
        if isinstance(item, int):
            return BitMasks(self.tensor[item][None])
        return BitMasks(self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"


class PolygonMasks:
    """The polygons of N instances.

    Attributes:
        polygons: per instance a list of flat float64 arrays (x0, y0, x1, y1, ...) in pixels.
    """

    def __init__(self, polygons: list[list[np.ndarray | Tensor | Sequence[float]]]) -> None:
        """Take per instance a list of polygons of at least three points.

        Raises:
            ValueError: not a list of lists, or a polygon with an odd number of coordinates or with
                fewer than six.
        """
        if not isinstance(polygons, list):
            raise ValueError(
                f"PolygonMasks: expected a list of lists of polygons, got {type(polygons)}"
            )
        self.polygons = [_check_polygons(instance) for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Return self: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight box of each instance; (inf, inf, 0, 0) where it has no polygon."""
        boxes = torch.zeros(len(self), 4)
        boxes[:, :2] = float("inf")
        for box, polygons in zip(boxes, self.polygons, strict=True):
            if polygons:
                points = torch.from_numpy(np.concatenate(polygons)).view(-1, 2).float()
                box[:2] = points.amin(dim=0)
                box[2:] = points.amax(dim=0).clamp(min=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """Return bool (N,): whether an instance has any polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def area(self) -> Tensor:
        """Return the sum of each instance's polygon areas, float64 (N,), in square pixels."""
        areas = [sum(map(_polygon_area, polygons)) for polygons in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    @staticmethod
    def cat(polymasks_list: Sequence["PolygonMasks"]) -> "PolygonMasks":
        """Concatenate."""
        if len(polymasks_list) == 0:
            raise AssertionError("PolygonMasks.cat: expected at least one object")
        return PolygonMasks(list(chain.from_iterable(masks.polygons for masks in polymasks_list)))

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> "PolygonMasks":
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, Tensor):
            if item.dtype == torch.bool:
                item = item.nonzero()[:, 0]
            elif item.dtype not in (torch.int32, torch.int64):
                raise ValueError(
                    f"PolygonMasks: expected a bool or integer index, got {item.dtype}"
                )
            item = item.tolist()
        return PolygonMasks([self.polygons[index] for index in item])

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[Polygons]:
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"


def _first_true(flags: Tensor) -> Tensor:
    """Index of the first True in each row, (N,); anything where there is none."""
    return flags.int().argmax(dim=1)


def _check_polygons(polygons: list[np.ndarray | Tensor | Sequence[float]]) -> Polygons:
    if not isinstance(polygons, list):
        raise ValueError(
            f"PolygonMasks: expected a list of polygons per instance, got {type(polygons)}"
        )
    arrays = [
        np.asarray(polygon.cpu() if isinstance(polygon, Tensor) else polygon, dtype=np.float64)
        for polygon in polygons
    ]
    for array in arrays:
        if len(array) < 6 or len(array) % 2:
            raise ValueError(
                f"PolygonMasks: a polygon needs 6, 8, ... coordinates, got {len(array)}"
            )
    return arrays


def _polygon_area(polygon: np.ndarray) -> float:
    """Area enclosed by a flat polygon: half the sum of cross products of neighbouring points."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
