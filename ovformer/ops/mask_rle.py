"""Run-length codes (RLE) of masks in COCO's format, computed on the device of the masks.

Legend: N masks, H W pixels.
"""

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


def encode_masks(masks: Tensor) -> list[dict]:
    """Return the compressed COCO run-length code of each mask.

    Accelerators copy only the starts of runs to the CPU, not the masks.

    Args:
        masks: bool (N, H, W).

    Returns:
        For each mask ``{"size": [H, W], "counts": str}``.
    """
    if masks.device.type != "cpu":
        return encode_runs(masks)
    codes = (coco_mask.encode(np.asfortranarray(mask)) for mask in masks.numpy().view(np.uint8))
    return [_decode_counts(code) for code in codes]


def encode_runs(masks: Tensor) -> list[dict]:
    """Encode masks as :func:`encode_masks`; always search the runs on the device of the masks."""
    height, width = masks.shape[1:]
    pixels = masks.transpose(1, 2).flatten(1)  # COCO's order is column by column
    # Counts alternate between zeros and ones and start with zeros: a first pixel of 1 begins a run.
    begins = torch.cat((pixels[:, :1], pixels[:, 1:] != pixels[:, :-1]), dim=1)
    mask_of_run, positions = begins.nonzero().cpu().numpy().T
    runs_of_masks = np.split(positions, np.searchsorted(mask_of_run, np.arange(1, len(masks))))
    codes = []
    # np.split returns one part even if there are no masks.
    for runs in runs_of_masks[: len(masks)]:
        counts = np.diff(runs, prepend=0, append=height * width).tolist()
        code = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        codes.append(_decode_counts(code))
    return codes


def _decode_counts(code: dict) -> dict:
    """Return a code of pycocotools with counts as str, which JSON can hold."""
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
