"""Figures of an image model: its predictions next to the ground truth, and its loss curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from pycocotools import mask as coco_mask

matplotlib.use("Agg")
from matplotlib import patheffects
from matplotlib import pyplot as plt

from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.samples.image_mapper import read_rgb

NUM_IMAGES = 8
# Not drawn: predictions below this score, and those with this IoU with a better one.
MIN_SCORE = 0.3
MAX_IOU = 0.5
CURVES = ("total_loss", "loss_ce", "loss_object_ce", "loss_mask", "loss_dice")
# Colours behind a name: of a right prediction, a wrong one, an annotated object.
RIGHT, WRONG, TRUTH = "#2a7", "#c33", "#333"


def draw_losses(metrics: Path, path: Path) -> None:
    """Draw the losses in detectron2's ``metrics.json``.

    Args:
        metrics: a JSON object on each line; lines without a loss are skipped.
        path: the PNG file to write.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, axes = plt.subplots(1, len(CURVES), figsize=(15, 2.8), layout="constrained")
    for axis, name in zip(axes, CURVES, strict=True):
        points = [(line["iteration"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 5 else "")
        axis.set(title=name, xlabel="iteration", ylim=(0, None))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_predictions(dataset_name: str, predictions: Sequence[Mapping], path: Path) -> None:
    """Draw the ground truth and the predictions of some images, side by side.

    Args:
        dataset_name: a registered data set.
        predictions: content of ``results.json``.
        path: the PNG file to write.
    """
    metadata = MetadataCatalog.get(dataset_name)
    novel = set(metadata.class_groups["novel"])
    contiguous_ids = metadata.thing_dataset_id_to_contiguous_id
    names = star_novel_names(dataset_name)
    records = [
        record
        for record in load_dataset(dataset_name)
        if len(record["annotations"]) > 1
        and any(annotation["category_id"] in novel for annotation in record["annotations"])
    ][:NUM_IMAGES]
    rows = max(1, -(-len(records) // 2))  # a small data set may have no such image
    figure, axes = plt.subplots(rows, 4, figsize=(15, 3.8 * rows), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for record, (truth_axis, axis) in zip(records, axes.reshape(-1, 2), strict=False):
        image = read_rgb(record["file_name"])
        truth = [(a["category_id"], a["segmentation"]) for a in record["annotations"]]
        draw_image(truth_axis, image, [(rle, names[label], TRUTH) for label, rle in truth])
        found = [
            (contiguous_ids[p["category_id"]], p["segmentation"], p["score"])
            for p in select_predictions(predictions, record["image_id"])
        ]
        labelled = [
            (
                rle,
                f"{names[label]} {score:.2f}",
                RIGHT if is_right(label, rle, truth) else WRONG,
            )
            for label, rle, score in found
        ]
        draw_image(axis, image, labelled)
        truth_axis.set_title("ground truth", fontsize=9)
        axis.set_title("prediction", fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def star_novel_names(dataset_name: str) -> list[str]:
    """Return the class names of a data set, with a star behind novel ones."""
    metadata = MetadataCatalog.get(dataset_name)
    novel = set(metadata.class_groups["novel"])
    return [f"{name} ★" if i in novel else name for i, name in enumerate(metadata.thing_classes)]


def select_predictions(predictions: Sequence[Mapping], image_id: int) -> list[Mapping]:
    """Return the predictions of an image to draw: the best one of each object."""
    kept: list[Mapping] = []
    candidates = [p for p in predictions if p["image_id"] == image_id and p["score"] >= MIN_SCORE]
    for prediction in sorted(candidates, key=lambda p: -p["score"]):
        others = [other["segmentation"] for other in kept]
        if not others or compute_iou(prediction["segmentation"], others).max() < MAX_IOU:
            kept.append(prediction)
    return kept


def is_right(label: int, rle: Mapping, truth: Sequence[tuple[int, Mapping]]) -> bool:
    """Return whether the image has an object of this class with an IoU of at least 0.5."""
    same = [other for other_label, other in truth if other_label == label]
    return bool(same) and compute_iou(rle, same).max() >= 0.5


def compute_iou(rle: Mapping, others: Sequence[Mapping]) -> np.ndarray:
    """Return the IoU of a mask with each of N others, (N,)."""
    return coco_mask.iou([rle], list(others), [False] * len(others))[0]


def draw_image(
    axis: plt.Axes, image: np.ndarray, objects: Sequence[tuple[Mapping, str, str]]
) -> None:
    """Draw an image with outlines and names of objects.

    Args:
        axis: where to draw.
        image: uint8 (H, W, 3), RGB.
        objects: mask as RLE, text, and colour behind the text.
    """
    axis.imshow(image)
    for rle, text, behind in objects:
        mask = coco_mask.decode(rle)
        draw_outline(axis, mask, "white")
        rows, columns = np.nonzero(mask)
        if len(rows):
            axis.text(
                columns.mean(),
                rows.min(),
                text,
                color="white",
                fontsize=9,
                ha="center",
                bbox={"facecolor": behind, "alpha": 0.85, "pad": 1.5, "linewidth": 0},
            )


def draw_outline(axis: plt.Axes, mask: np.ndarray, colour: str) -> None:
    """Draw the outline of a mask, (H, W), with a dark rim."""
    if mask.any():
        height, width = mask.shape
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        lines = axis.contour(*grid, np.pad(mask, 1), [0.5], colors=colour, linewidths=1.5)
        lines.set(path_effects=[patheffects.withStroke(linewidth=3.5, foreground="black")])
