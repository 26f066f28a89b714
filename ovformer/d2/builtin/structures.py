"""The data types of detectors: images padded to one size, and the instances of an image.

Legend: B images, N instances, C channels, H W pixels.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor

from ovformer.d2.builtin.boxes import Boxes, BoxMode
from ovformer.d2.builtin.masks import BitMasks

__all__ = ["BitMasks", "BoxMode", "Boxes", "ImageList", "Instances"]


class ImageList:
    """Images of several sizes in one tensor, padded at the bottom and the right.

    Attributes:
        tensor: (B, ..., H, W).
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to one size.

        Args:
            tensors: images (..., H_i, W_i) that agree in all but the last two dimensions.
            size_divisibility: H and W become multiples of it; 0 and 1 have no effect.
            pad_value: value of the padding.
            padding_constraints: a backbone's; its "size_divisibility" replaces the argument, and
                a positive "square_size" sets both H and W.
        """
        if len(tensors) == 0:
            raise AssertionError("ImageList: expected at least one image")
        leading = tensors[0].shape[:-2]
        for tensor in tensors:
            if tensor.shape[:-2] != leading:
                raise AssertionError(
                    f"ImageList: images may differ only in height and width, got "
                    f"{[tuple(t.shape) for t in tensors]}"
                )
        sizes = [(tensor.shape[-2], tensor.shape[-1]) for tensor in tensors]
        height, width = (max(side) for side in zip(*sizes, strict=True))
        constraints = padding_constraints or {}
        if constraints.get("square_size", 0) > 0:
            height = width = constraints["square_size"]
        stride = max(1, constraints.get("size_divisibility", size_divisibility))
        height, width = (-(-side // stride) * stride for side in (height, width))
        padded = tensors[0].new_full((len(tensors), *leading, height, width), pad_value)
        for image, tensor, (h, w) in zip(padded, tensors, sizes, strict=True):
            image[..., :h, :w].copy_(tensor)
        return ImageList(padded, sizes)

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Return the images on another device or in another type."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.tensor.device

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]


class Instances:
    """The N instances of an image: named fields of equal length, set and read as attributes.

    Args:
        image_size: (height, width) in pixels.
        **kwargs: fields by name.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def set(self, name: str, value: Any) -> None:
        """Set a field.

        Args:
            name: of the field.
            value: a tensor, list, :class:`Boxes` or masks; it has a length and can be indexed.

        Raises:
            AssertionError: its length differs from that of the other fields (detectron2's type).
        """
        length = len(value)
        if self._fields and length != len(self):
            raise AssertionError(
                f"Instances: field {name!r} has length {length}, the other fields {len(self)}"
            )
        self._fields[name] = value

    def get(self, name: str) -> Any:
        """Return a field."""
        return self._fields[name]

    def has(self, name: str) -> bool:
        """Return whether the field exists."""
        return name in self._fields

    def remove(self, name: str) -> None:
        """Drop a field."""
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """Return the fields themselves, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Return new instances, with each field that has a ``to`` moved by it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Concatenate instances of one image size that have the same fields.

        Raises:
            AssertionError: the list is empty, or the image sizes differ (detectron2's type).
            ValueError: a field's type cannot be concatenated.
        """
        if len(instance_lists) == 0:
            raise AssertionError("Instances.cat: expected at least one object")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = [instances.image_size for instances in instance_lists]
        if any(size != first.image_size for size in sizes):
            raise AssertionError(f"Instances.cat: expected one image size, got {sizes}")
        joined = Instances(first.image_size)
        for name, sample in first.get_fields().items():
            values = [instances.get(name) for instances in instance_lists]
            if isinstance(sample, Tensor):
                joined.set(name, torch.cat(values))
            elif isinstance(sample, list):
                joined.set(name, list(chain.from_iterable(values)))
            elif hasattr(type(sample), "cat"):
                joined.set(name, type(sample).cat(values))
            else:
                raise ValueError(
                    f"Instances.cat: field {name!r} of type {type(sample)} cannot be concatenated"
                )
        return joined

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling look for "_fields" before it exists.
        if name == "_fields" or name not in self._fields:
            known = ", ".join(self.__dict__.get("_fields", {})) or "none"
            raise AttributeError(f"Instances: no field {name!r}. Fields: {known}")
        return self._fields[name]

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError(f"Instances: index {item} is out of range, length {len(self)}")
            # One instance, also for a negative index.
            item = slice(item, None, len(self))
        selected = Instances(self._image_size)
        for name, value in self._fields.items():
            selected.set(name, value[item])
        return selected

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances: they have no length without a field")

    def __iter__(self) -> NoReturn:
        raise NotImplementedError("Instances: iterate over range(len(instances)) instead")

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        height, width = self._image_size
        return (
            f"Instances(num_instances={count}, image_height={height}, image_width={width}, "
            f"fields=[{fields}])"
        )
