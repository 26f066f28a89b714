"""Masks for the tests, and their codes as files have them."""

import numpy as np
from pycocotools import mask as coco_mask


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A mask (height, width) of the pixels x0 <= x < x1, y0 <= y < y1."""
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def corners(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    """The same rectangle as a polygon."""
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a mask; the last two are the first pixels outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs, row by row; the first run is outside the mask and may be empty."""
    flat = np.concatenate([[0], mask.ravel().astype(int), [-1]])
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()


def uncompressed_rle(mask: np.ndarray) -> dict:
    """COCO's RLE as a list of runs, which go along columns."""
    return {"size": list(mask.shape), "counts": run_lengths(mask.T)}


def compressed_rle(mask: np.ndarray) -> dict:
    """COCO's compressed RLE, as a JSON file has it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
