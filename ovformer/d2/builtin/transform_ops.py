"""Transforms that fvcore lacks: resizing, rotation, colour.

Legend: H W pixels, C channels, P points (x, y).
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from fvcore.transforms.transform import Transform
from PIL import Image
from torch.nn import functional as F

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


class ResizeTransform(Transform):
    """Resizes uint8 images with Pillow, and all others with PyTorch, as Pillow cannot.

    Args:
        h: height of the image in pixels.
        w: width of the image.
        new_h: height of the result.
        new_w: width of the result.
        interp: a method of Pillow, bilinear by default.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        if interp is None:
            interp = Image.Resampling.BILINEAR
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W) or (H, W, C).

        Raises:
            AssertionError: the image is not of size (h, w) (detectron2's type).
        """
        if img.shape[:2] != (self.h, self.w):
            raise AssertionError(
                f"ResizeTransform: expected an image of {self.h}x{self.w}, got {img.shape}"
            )
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return self._resize_uint8(img, interp)
        mode = _TORCH_MODES[interp]
        # F.interpolate takes (1, C, H, W), so labels (H, W) are one channel meanwhile.
        channels = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1)
        resized = F.interpolate(
            channels.permute(2, 0, 1)[None],
            (self.new_h, self.new_w),
            mode=mode,
            align_corners=None if mode == "nearest" else False,
        )
        return resized[0].permute(1, 2, 0).numpy().reshape(self.new_h, self.new_w, *img.shape[2:])

    def _resize_uint8(self, img: np.ndarray, interp: int) -> np.ndarray:
        is_single_channel = img.ndim == 3 and img.shape[2] == 1
        image = Image.fromarray(img[:, :, 0] if is_single_channel else img)
        resized = np.asarray(image.resize((self.new_w, self.new_h), interp))
        return resized[:, :, None] if is_single_channel else resized

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale points (P, 2), in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize labels (H, W) to the nearest pixel."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class RotationTransform(Transform):
    """Rotates around a point, counter-clockwise.

    Args:
        h: height of the image.
        w: width of the image.
        angle: in degrees.
        expand: enlarge the result so that it holds the whole rotated image.
        center: (x, y) in pixels, by default that of the image; has no effect with ``expand``.
        interp: a method of OpenCV, linear by default.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        super().__init__()
        image_center = np.array((w / 2, h / 2))
        if center is None:
            center = image_center
        if interp is None:
            interp = cv2.INTER_LINEAR
        bound_w, bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            bound_w = int(np.rint(h * sin + w * cos))
            bound_h = int(np.rint(h * cos + w * sin))
        self._set_attributes(locals())
        self.rm_coords = self.create_rotation_matrix()
        # warpAffine counts from the centre of the first pixel, points from its corner.
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """Return the 2x3 matrix for points counted from ``offset`` pixels before the corner."""
        center = (float(self.center[0] + offset), float(self.center[1] + offset))
        matrix = cv2.getRotationMatrix2D(center, float(self.angle), 1)
        if self.expand:
            # The matrix keeps the centre in place; the middle of the larger result is elsewhere.
            rotated_center = matrix @ np.append(self.image_center + offset, 1.0)
            new_center = np.array([self.bound_w / 2, self.bound_h / 2]) + offset
            matrix[:, 2] += new_center - rotated_center
        return matrix

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate (H, W) or (H, W, C); pixels from outside are 0.

        Raises:
            AssertionError: the image is not of size (h, w) (detectron2's type).
        """
        if len(img) == 0 or self.angle % 360 == 0:
            return img
        if img.shape[:2] != (self.h, self.w):
            raise AssertionError(
                f"RotationTransform: expected an image of {self.h}x{self.w}, got {img.shape}"
            )
        flags = self.interp if interp is None else interp
        return cv2.warpAffine(img, self.rm_image, (self.bound_w, self.bound_h), flags=flags)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate points (P, 2)."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return cv2.transform(coords[:, None, :], self.rm_coords)[:, 0, :]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate labels (H, W) to the nearest pixel."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)


class ColorTransform(Transform):
    """Changes the colours of an image by a function; coordinates stay.

    Args:
        op: maps images (H, W, C) to images.

    Raises:
        ValueError: ``op`` cannot be called.
    """

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise ValueError(f"ColorTransform: expected a function, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the colours of (H, W, C)."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the labels unchanged."""
        return segmentation
