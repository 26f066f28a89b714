"""Strips of frames: the predictions of video models below the ground truth."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib import pyplot as plt
from pycocotools import mask as coco_mask

from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.evaluation.tube_iou import tube_iou
from ovformer_tools.reports.images import (
    MIN_SCORE,
    RIGHT,
    TRUTH,
    WRONG,
    draw_outline,
    star_novel_names,
)

NUM_VIDEOS = 4
NUM_FRAMES = 6
# Predictions with this tube IoU with a better one are not drawn.
MAX_IOU = 0.5
COLOURS = ("#ffe119", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#ffffff", "#ff8c1a", "#9a6324")


def draw_video_strips(dataset_name: str, runs: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draw some frames of some videos, a row for the ground truth and one for each model.

    Args:
        dataset_name: a registered data set of videos.
        runs: title of a model -> content of its ``results.json``.
        path: the PNG file to write.
    """
    metadata = MetadataCatalog.get(dataset_name)
    novel = set(metadata.class_groups["novel"])
    names = star_novel_names(dataset_name)
    records = [
        record
        for record in load_dataset(dataset_name)
        if len(tubes := truth_tubes(record)) > 1 and any(label in novel for label, _ in tubes)
    ][:NUM_VIDEOS]
    rows = max(1, (1 + len(runs)) * len(records))  # a small data set may have no such video
    figure, axes = plt.subplots(
        rows,
        NUM_FRAMES + 1,
        figsize=(1.8 * NUM_FRAMES + 2.6, 1.83 * rows),
        width_ratios=[*[1] * NUM_FRAMES, 1.4],
        layout="constrained",
        squeeze=False,
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    remaining = iter(axes)
    for record in records:
        truth = truth_tubes(record)
        tubes = [tube for _, tube in truth]
        draw_strip(
            next(remaining),
            record,
            "ground truth",
            [(tube, names[label], TRUTH) for label, tube in truth],
            list(range(len(truth))),
        )
        for title, predictions in runs.items():
            selected = select_tubes(predictions, record["video_id"])
            tracks = [
                (
                    p["segmentations"],
                    f"{names[label]} {p['score']:.2f}",
                    RIGHT if is_right(label, p["segmentations"], truth) else WRONG,
                )
                for p in selected
                for label in [metadata.thing_dataset_id_to_contiguous_id[p["category_id"]]]
            ]
            colours = number_like_truth([p["segmentations"] for p in selected], tubes)
            draw_strip(next(remaining), record, title, tracks, colours)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def truth_tubes(record: Mapping) -> list[tuple[int, list]]:
    """Return class and tube of each annotated object of a video."""
    tubes: dict[int, tuple[int, list]] = {}
    for t, annotations in enumerate(record["annotations"]):
        for a in annotations:
            empty = (a["category_id"], [None] * record["length"])
            tubes.setdefault(a["id"], empty)[1][t] = a["segmentation"]
    return list(tubes.values())


def select_tubes(predictions: Sequence[Mapping], video_id: int) -> list[Mapping]:
    """Return the predictions of a video to draw: the best one of each object."""
    kept: list[Mapping] = []
    candidates = [p for p in predictions if p["video_id"] == video_id and p["score"] >= MIN_SCORE]
    for prediction in sorted(candidates, key=lambda p: -p["score"]):
        others = [other["segmentations"] for other in kept]
        if not others or tube_iou([prediction["segmentations"]], others).max() < MAX_IOU:
            kept.append(prediction)
    return kept


def is_right(label: int, tube: Sequence, truth: Sequence[tuple[int, Sequence]]) -> bool:
    """Return whether the video has an object of this class with a tube IoU of at least 0.5."""
    same = [other for other_label, other in truth if other_label == label]
    return bool(same) and tube_iou([tube], same).max() >= 0.5


def number_like_truth(tubes: Sequence[Sequence], truth: Sequence[Sequence]) -> list[int]:
    """Give each tube the number of the true tube that it overlaps most, so that colours match.

    Args:
        tubes: P tubes.
        truth: N tubes.

    Returns:
        P different numbers. Tubes without a true one get N and above.
    """
    numbers: dict[int, int] = {}
    if tubes and truth:
        overlap = tube_iou(tubes, truth)
        for flat in np.argsort(-overlap, axis=None):
            tube, number = (int(i) for i in np.unravel_index(flat, overlap.shape))
            if overlap[tube, number] > 0 and tube not in numbers:
                if number not in numbers.values():
                    numbers[tube] = number
    unused = itertools.count(len(truth))
    return [numbers[tube] if tube in numbers else next(unused) for tube in range(len(tubes))]


def draw_strip(
    axes: Sequence[plt.Axes],
    record: Mapping,
    title: str,
    tracks: Sequence[tuple[Sequence, str, str]],
    colours: Sequence[int],
) -> None:
    """Draw a row: frames spread evenly over a video, then a list of names.

    Args:
        axes: where to draw, the last one for the names.
        record: the dataset dict of the video.
        title: of the row.
        tracks: tube, text and colour of the text of each object.
        colours: number of the colour of each object's outline, in all frames.
    """
    *frames, names = axes
    outlines = [COLOURS[number % len(COLOURS)] for number in colours]
    times = np.linspace(0, record["length"] - 1, min(len(frames), record["length"])).round()
    for axis, t in zip(frames, times.astype(int), strict=False):
        axis.imshow(read_rgb(record["file_names"][t]))
        for (tube, _, _), colour in zip(tracks, outlines, strict=True):
            if tube[t] is not None:
                draw_outline(axis, coco_mask.decode(tube[t]), colour)
        axis.set_xlabel(f"frame {t}", fontsize=7, labelpad=1)
    frames[0].set_ylabel(title, fontsize=10)
    for line, ((_, text, colour), outline) in enumerate(zip(tracks, outlines, strict=True)):
        height = 0.93 - 0.13 * line
        names.text(0.03, height, "\N{BLACK SQUARE}", color=outline, fontsize=14, va="center")
        names.texts[-1].set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
        names.text(0.17, height, text, color=colour, fontsize=10, va="center")
