"""Boxes and the formats of their coordinates.

Legend: N boxes.
"""

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor


@unique
class BoxMode(IntEnum):
    """The meaning of the four numbers of a box."""

    # x0, y0, x1, y1 in pixels
    XYXY_ABS = 0
    # x0, y0, width, height in pixels
    XYWH_ABS = 1
    # The same relative to the image's size, and rotated boxes. They cannot be converted.
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(
        box: Sequence[float] | np.ndarray | Tensor, from_mode: "BoxMode", to_mode: "BoxMode"
    ) -> Sequence[float] | np.ndarray | Tensor:
        """Convert boxes between XYXY_ABS and XYWH_ABS.

        Args:
            box: one box as a list or tuple of 4 numbers, or an array or tensor of shape (N, 4).
            from_mode: the mode of ``box``.
            to_mode: the mode of the result.

        Returns:
            The box in its own type. The input is not changed; it is returned itself if both modes
            are equal.

        Raises:
            AssertionError: a relative mode, or a list of other than 4 numbers (detectron2's type).
            NotImplementedError: any other conversion.
        """
        if from_mode == to_mode:
            return box
        is_single = isinstance(box, list | tuple)
        if is_single and len(box) != 4:
            raise AssertionError(f"BoxMode.convert: expected 4 numbers, got {box!r}")
        relative = {BoxMode.XYXY_REL, BoxMode.XYWH_REL} & {from_mode, to_mode}
        if relative:
            raise AssertionError(f"BoxMode.convert: {relative.pop()!r} is not supported")

        if is_single:
            boxes = torch.tensor(box)[None]
        elif isinstance(box, np.ndarray):
            boxes = torch.from_numpy(box.copy())
        else:
            boxes = box.clone()
        if (from_mode, to_mode) == (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
            boxes[:, 2:] += boxes[:, :2]
        elif (from_mode, to_mode) == (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            boxes[:, 2:] -= boxes[:, :2]
        else:
            raise NotImplementedError(
                f"BoxMode.convert: {from_mode!r} to {to_mode!r} is not supported"
            )

        if is_single:
            return type(box)(boxes[0].tolist())
        return boxes.numpy() if isinstance(box, np.ndarray) else boxes


class Boxes:
    """N axis-aligned boxes; indexing, ``len`` and iteration work as on a tensor.

    Args:
        tensor: boxes (N, 4); anything empty becomes (0, 4).

    Attributes:
        tensor: float32 (N, 4), rows (x0, y0, x1, y1) in pixels.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence[Sequence[float]]) -> None:
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.float32)
        else:
            tensor = torch.as_tensor(np.asarray(tensor), dtype=torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise AssertionError(f"Boxes: expected shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> "Boxes":
        """Return the boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    @property
    def device(self) -> torch.device:
        """The device of the boxes."""
        return self.tensor.device

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """Return bool (N,): whether both sides are longer than ``threshold`` pixels."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return (sides > threshold).all(dim=1)

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """Concatenate; no boxes for an empty list."""
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]))

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, 4))
        return Boxes(self.tensor[item])

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"
