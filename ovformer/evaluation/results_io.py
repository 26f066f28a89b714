"""Predictions in files: ``results.json``, with masks as COCO's run-length encoding (RLE)."""

from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from ovformer.data.json_file import read_json


def encode_masks(masks: Tensor) -> list[dict]:
    """Return masks as compressed RLEs.

    Args:
        masks: bool (N, H, W).

    Returns:
        N dicts {"size": [H, W], "counts": str}.
    """
    array = np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
    rles = coco_mask.encode(array)
    for rle in rles:
        rle["counts"] = rle["counts"].decode("ascii")
    return rles


def read_results(path: Path) -> list[dict]:
    """Read a ``results.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. An evaluation (--eval-only) writes it.")
    results = read_json(path)
    if not isinstance(results, list):
        raise ValueError(f"{path}: expected a list of predictions, got {type(results).__name__}.")
    return results
