"""The overlap of tubes, computed on their run-length codes.

A tube is a mask over time: a list of T COCO RLEs ``{"size": [H, W], "counts": str or bytes}``, one
per frame, ``None`` where the object is absent. No mask is ever decoded.

N, D, G numbers of tubes, T frames, H W pixels
"""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

Tube = Sequence[dict | None]

# With numpy 2, pycocotools cannot measure more masks in one call.
_MOST_AREAS = 255


def tube_areas(tubes: Sequence[Tube], num_frames: int) -> np.ndarray:
    """Count the pixels of tubes in each frame.

    Args:
        tubes: N tubes of ``num_frames`` frames each.
        num_frames: T; the tubes do not tell it where N is 0.

    Returns:
        int64 (N, T); 0 in a frame where the tube is ``None`` or empty.
    """
    areas = np.zeros((len(tubes), num_frames), dtype=np.int64)
    # A model that keeps the best pairs of query and class returns a tube once for each class.
    measured: dict[tuple, np.ndarray] = {}
    for row, tube in zip(areas, tubes, strict=True):
        key = tuple([mask and mask["counts"] for mask in tube])
        if key in measured:
            row[:] = measured[key]
            continue
        measured[key] = row
        visible = [t for t, counts in enumerate(key) if counts is not None]
        for start in range(0, len(visible), _MOST_AREAS):
            frames = visible[start : start + _MOST_AREAS]
            row[frames] = coco_mask.area([tube[t] for t in frames])
    return areas


def mean_areas(areas: np.ndarray) -> np.ndarray:
    """Average the pixels of tubes over the frames in which they are visible.

    Args:
        areas: (N, T), from :func:`tube_areas`.

    Returns:
        float64 (N,); 0 for a tube that is empty in every frame.
    """
    return areas.sum(axis=1) / np.maximum(np.count_nonzero(areas, axis=1), 1)


def frame_ious(
    predictions: Sequence[Tube],
    targets: Sequence[Tube],
    prediction_areas: np.ndarray,
    target_areas: np.ndarray,
) -> np.ndarray:
    """Compute the IoU of each predicted with each target tube in each frame.

    Args:
        predictions: D tubes of T frames each.
        targets: G tubes of T frames each.
        prediction_areas: (D, T) from :func:`tube_areas`.
        target_areas: (G, T) likewise.

    Returns:
        float64 (T, D, G); 0 where one of the masks is absent or empty.

    Raises:
        ValueError: in a frame, a predicted and a target mask differ in size.
    """
    num_frames = prediction_areas.shape[1]
    ious = np.zeros((num_frames, len(predictions), len(targets)))
    seen, true_seen = prediction_areas > 0, target_areas > 0
    complete = seen.all(axis=0) & true_seen.all(axis=0)
    for t in np.flatnonzero(seen.any(axis=0) & true_seen.any(axis=0)):
        masks, true_masks = [tube[t] for tube in predictions], [tube[t] for tube in targets]
        if complete[t]:
            ious[t] = coco_mask.iou(masks, true_masks, [0] * len(targets))
        else:
            rows, columns = np.flatnonzero(seen[:, t]), np.flatnonzero(true_seen[:, t])
            masks, true_masks = [masks[d] for d in rows], [true_masks[g] for g in columns]
            ious[t, rows[:, None], columns] = coco_mask.iou(masks, true_masks, [0] * len(columns))
    if (ious < 0).any():
        t, d, g = np.argwhere(ious < 0)[0]
        raise ValueError(
            f"Frame {t}: a predicted mask of size {predictions[d][t]['size']} cannot be compared "
            f"with a true mask of size {targets[g][t]['size']} (height, width). Predictions have "
            "to be of the original size of the video."
        )
    return ious


def tube_iou(
    predictions: Sequence[Tube],
    targets: Sequence[Tube],
    prediction_areas: np.ndarray | None = None,
    target_areas: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the IoU of each predicted with each target tube: summed over frames, then divided.

    One call of pycocotools compares all pairs of tubes in one frame. It returns the ratio
    ``r = intersection / (a + g - intersection)`` of two masks of ``a`` and ``g`` pixels, so the
    intersection is ``r (a + g) / (1 + r)``: a whole number, which rounding makes exact again.

    Args:
        predictions: D tubes of T frames each.
        targets: G tubes of T frames each.
        prediction_areas: (D, T) from :func:`tube_areas`; computed by default.
        target_areas: (G, T) likewise.

    Returns:
        float64 (D, G); 0 where both tubes are empty.

    Raises:
        ValueError: in a frame, a predicted and a target mask differ in size.
    """
    num_frames = len((predictions or targets or [[]])[0])
    if prediction_areas is None:
        prediction_areas = tube_areas(predictions, num_frames)
    if target_areas is None:
        target_areas = tube_areas(targets, num_frames)
    ratio = frame_ious(predictions, targets, prediction_areas, target_areas)
    total = prediction_areas.T[:, :, None] + target_areas.T[:, None, :]
    intersection = np.rint(ratio * total / (1 + ratio)).sum(axis=0)
    union = total.sum(axis=0) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
