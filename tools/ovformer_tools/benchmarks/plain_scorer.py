"""A plain scorer of video results, for comparison: slow, with all results in memory.

It computes the metric in the way of the published scorers: it loads the whole file, measures each
mask, merges the masks of each pair of tubes frame by frame, matches each class, area range and
video on its own, and averages over classes, area ranges and limits.

Legend: i IoU threshold, r recall, k class, a area range, m limit of predictions, d prediction, g
ground truth.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
LIMITS = (1, 10, 100)
AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))


def score(truth_file: Path, results_file: Path) -> list[float]:
    """Return COCO's twelve numbers."""
    truth = json.loads(truth_file.read_text())
    predictions = json.loads(results_file.read_text())
    for prediction in predictions:
        masks = prediction["segmentations"]
        prediction["areas"] = [coco_mask.area(mask) if mask else None for mask in masks]
        prediction["bboxes"] = [coco_mask.toBbox(mask) if mask else None for mask in masks]
    tubes = []
    for entries in (truth["annotations"], predictions):
        index = defaultdict(list)
        for entry in entries:
            areas = [area for area in entry["areas"] if area]
            entry["area"] = np.mean(areas) if areas else 0
            index[entry["video_id"], entry["category_id"]].append(entry)
        tubes.append(index)
    videos = sorted(video["id"] for video in truth["videos"])
    classes = sorted(category["id"] for category in truth["categories"])
    overlaps = {
        (v, c): _compute_overlaps(*(t[v, c] for t in tubes)) for v in videos for c in classes
    }
    precision = -np.ones((len(IOUS), len(RECALLS), len(classes), len(AREAS), len(LIMITS)))
    recall = -np.ones((len(IOUS), len(classes), len(AREAS), len(LIMITS)))
    for k, c in enumerate(classes):
        for a, limits in enumerate(AREAS):
            matches = [_match(*(t[v, c] for t in tubes), overlaps[v, c], limits) for v in videos]
            matches = [match for match in matches if match is not None]
            for m, most in enumerate(LIMITS):
                _accumulate(matches, most, precision[:, :, k, a, m], recall[:, k, a, m])
    return [
        _mean(precision[..., 0, 2]),
        _mean(precision[0, ..., 0, 2]),
        _mean(precision[5, ..., 0, 2]),
        *(_mean(precision[..., a, 2]) for a in (1, 2, 3)),
        *(_mean(recall[..., 0, m]) for m in range(3)),
        *(_mean(recall[..., a, 2]) for a in (1, 2, 3)),
    ]


def tube_iou(first: list[dict | None], second: list[dict | None]) -> float:
    """Return the IoU of two tubes, frame by frame."""
    intersection = union = 0
    for a, b in zip(first, second, strict=True):
        if a and b:
            intersection += coco_mask.area(coco_mask.merge([a, b], True))
            union += coco_mask.area(coco_mask.merge([a, b], False))
        elif a or b:
            union += coco_mask.area(a or b)
    return intersection / union if union else 0.0


def _compute_overlaps(targets: list[dict], predictions: list[dict]) -> np.ndarray | list:
    if not targets and not predictions:
        return []
    overlaps = np.zeros((len(predictions), len(targets)))
    order = np.argsort([-p["score"] for p in predictions], kind="mergesort")[: LIMITS[-1]]
    for d, g in np.ndindex(len(order), len(targets)):
        prediction = predictions[order[d]]
        overlaps[d, g] = tube_iou(prediction["segmentations"], targets[g]["segmentations"])
    return overlaps


def _match(
    targets: list[dict], predictions: list[dict], overlaps: np.ndarray, limits: tuple[float, float]
) -> tuple | None:
    if not targets and not predictions:
        return None
    outside = np.array([not limits[0] <= t["area"] <= limits[1] for t in targets], dtype=bool)
    columns = np.argsort(outside, kind="mergesort")
    order = np.argsort([-p["score"] for p in predictions], kind="mergesort")[: LIMITS[-1]]
    matched = np.zeros((len(IOUS), len(order)), dtype=bool)
    ignored = np.zeros_like(matched)
    taken = np.zeros((len(IOUS), len(targets)), dtype=bool)
    for i, threshold in enumerate(IOUS):
        for d in range(len(order)):
            best, overlap = None, min(threshold, 1 - 1e-10)
            for g in columns:
                if taken[i, g]:
                    continue
                # Columns outside the area range come last; one inside is preferred.
                if best is not None and outside[g] and not outside[best]:
                    break
                if overlaps[d, g] >= overlap:
                    best, overlap = g, overlaps[d, g]
            if best is not None:
                taken[i, best] = matched[i, d] = True
                ignored[i, d] = outside[best]
    areas = [predictions[p]["area"] for p in order]
    ignored |= ~matched & np.array([not limits[0] <= area <= limits[1] for area in areas], bool)
    return [predictions[p]["score"] for p in order], matched, ignored, outside


def _accumulate(matches: list[tuple], most: int, precision: np.ndarray, recall: np.ndarray) -> None:
    if not matches:
        return
    scores = np.concatenate([match[0][:most] for match in matches])
    order = np.argsort(-scores, kind="mergesort")
    matched = np.concatenate([match[1][:, :most] for match in matches], axis=1)[:, order]
    ignored = np.concatenate([match[2][:, :most] for match in matches], axis=1)[:, order]
    count = np.count_nonzero(~np.concatenate([match[3] for match in matches]))
    if count == 0:
        return
    right = np.cumsum(matched & ~ignored, axis=1).astype(np.float64)
    wrong = np.cumsum(~matched & ~ignored, axis=1).astype(np.float64)
    for i in range(len(IOUS)):
        # Precision at each recall: the best precision at this or a higher recall.
        found = right[i] / count
        recall[i] = found[-1] if len(found) else 0
        values = (right[i] / (right[i] + wrong[i] + np.spacing(1))).tolist()
        for n in range(len(values) - 1, 0, -1):
            values[n - 1] = max(values[n - 1], values[n])
        precision[i] = 0
        for r, n in enumerate(np.searchsorted(found, RECALLS)):
            if n < len(values):
                precision[i, r] = values[n]


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
