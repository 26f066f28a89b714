"""The interface of augmentations: policies that look at an image and return a transform.

Legend: H W pixels, C channels, N boxes.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class AugInput:
    """The input of an augmentation, which transforms it in place.

    Args:
        image: (H, W) or (H, W, C), uint8 or floating point.
        boxes: (N, 4), x0, y0, x1, y1 in pixels.
        sem_seg: integer labels (H, W).

    Raises:
        AssertionError: ``image`` is not such an array (detectron2's type).
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise AssertionError(
                f"AugInput: image must be an array (H, W) or (H, W, C), got {type(image)}"
            )
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform everything, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


class Augmentation:
    """A policy, often random, that decides on a :class:`Transform`.

    Subclasses implement :meth:`get_transform`. Its parameters name the attributes of the
    :class:`AugInput` that it takes; a single parameter is the image.
    """

    # Names of the input's attributes that get_transform takes; None: taken from its signature.
    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep a constructor's ``locals()`` as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Decide on a transform for an input."""
        raise NotImplementedError(f"{type(self).__name__}.get_transform")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Transform the input, in place.

        Args:
            aug_input: has the attributes that :meth:`get_transform` takes.

        Returns:
            The transform that was applied.

        Raises:
            AttributeError: the input lacks such an attribute.
            TypeError: :meth:`get_transform` takes a variable number of arguments.
            AssertionError: it did not return a transform (detectron2's type).
        """
        tfm = self.get_transform(*self._read_args(aug_input))
        if not isinstance(tfm, Transform):
            raise AssertionError(
                f"{type(self).__name__}.get_transform must return a Transform, got {type(tfm)}"
            )
        aug_input.transform(tfm)
        return tfm

    def _read_args(self, aug_input: AugInput) -> list[Any]:
        if self.input_args is None:
            self.input_args = self._argument_names()
        for attribute in self.input_args:
            if not hasattr(aug_input, attribute):
                raise AttributeError(
                    f"{type(self).__name__} needs {attribute!r}, but the input of type "
                    f"{type(aug_input).__name__} does not have it"
                )
        return [getattr(aug_input, attribute) for attribute in self.input_args]

    def _argument_names(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters
        if len(parameters) == 1:
            return ("image",)
        for parameter in parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(
                    f"{type(self).__name__}.get_transform must name its arguments, not take "
                    f"{parameter}. If they are not known, override __call__."
                )
        return tuple(parameters)

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: Any = None
    ) -> float | np.ndarray:
        """Draw uniformly from [low, high), or from [0, low) where ``high`` is not given."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        arguments = (
            f"{name}={getattr(self, name)!r}"
            for name, parameter in defaults.items()
            if hasattr(self, name) and getattr(self, name) is not parameter.default
        )
        return f"{type(self).__name__}({', '.join(arguments)})"


class _FixedAugmentation(Augmentation):
    """An augmentation that always applies the same transform."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.tfm

    def __call__(self, aug_input: AugInput) -> Transform:
        aug_input.transform(self.tfm)
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)


def as_augmentation(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    """Wrap a transform in an augmentation; return an augmentation unchanged.

    Raises:
        AssertionError: it is neither (detectron2's type).
    """
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, Transform):
        return _FixedAugmentation(tfm_or_aug)
    raise AssertionError(f"Expected an Augmentation or a Transform, got {tfm_or_aug!r}")


class AugmentationList(Augmentation):
    """Applies augmentations in order, each to the result of the one before.

    Args:
        augs: augmentations and transforms in the order of application.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        """Transform the input, in place, and return all transforms."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"
