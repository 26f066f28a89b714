"""The masks of one image's instances, as bitmaps.

Legend: N instances, H W pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovformer.d2.builtin.boxes import Boxes


class BitMasks:
    """N bitmaps of one size.

    Args:
        tensor: masks (N, H, W); non-zero pixels are inside.

    Attributes:
        tensor: bool (N, H, W).
        image_size: (H, W).
    """

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
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
        """The device of the masks."""
        return self.tensor.device

    def nonempty(self) -> Tensor:
        """Return bool (N,): whether a mask has a pixel inside."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight box of each mask, on the CPU; zeros for an empty mask."""
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        # The first True from either end; the high side of a box is exclusive.
        low = [_first_true(columns), _first_true(rows)]
        high = [side.shape[1] - _first_true(side.flip(1)) for side in (columns, rows)]
        boxes = torch.stack(low + high, dim=1).float()
        # Without any True, argmax is 0 from both ends: that would be a box around the whole image.
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


def _first_true(flags: Tensor) -> Tensor:
    """Return the index of the first True in each row, (N,); undefined for a row without one."""
    return flags.int().argmax(dim=1)
