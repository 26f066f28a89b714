"""Film strips: what video models find, frame by frame, below what is there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from ovformer.d2 import MetadataCatalog
from ovformer.data.dataset_spec import load_dataset
from ovformer.data.image_mapper import read_rgb
from ovformer.evaluation.tube_iou import tube_iou
from reports.images import MIN_SCORE, RIGHT, TRUTH, WRONG, draw_image, starred_names

NUM_VIDEOS = 4
NUM_FRAMES = 6
# Predictions that overlap a better one by this tube IoU are not drawn.
MAX_IOU = 0.5
COLOURS = ("#ffe119", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#ffffff", "#ff8c1a", "#9a6324")


def draw_films(dataset_name: str, runs: Mapping[str, Sequence[Mapping]], path: Path) -> None:
    """Draw some frames of some videos, a row for the ground truth and one for each model.

    Args:
        dataset_name: a registered data set of videos.
        runs: title of a model -> content of its ``results.json``.
        path: the PNG file to write.
    """
    metadata = MetadataCatalog.get(dataset_name)
    novel = set(metadata.class_groups["novel"])
    names = starred_names(dataset_name)
    records = [
        record
        for record in load_dataset(dataset_name)
        if len(tubes := truth_tubes(record)) > 1 and any(label in novel for label, _ in tubes)
    ][:NUM_VIDEOS]
    rows = 1 + len(runs)
    figure, axes = plt.subplots(
        rows * len(records),
        NUM_FRAMES,
        figsize=(2.5 * NUM_FRAMES, 2.6 * rows * len(records)),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.axis("off")
    for number, record in enumerate(records):
        truth = truth_tubes(record)
        objects = {"ground truth": [(tube, names[label], TRUTH) for label, tube in truth]}
        for title, predictions in runs.items():
            objects[title] = [
                (
                    p["segmentations"],
                    f"{names[label]} {p['score']:.2f}",
                    RIGHT if is_right(label, p["segmentations"], truth) else WRONG,
                )
                for p in select_tubes(predictions, record["video_id"])
                for label in [metadata.thing_dataset_id_to_contiguous_id[p["category_id"]]]
            ]
        for row, (title, tracks) in enumerate(objects.items(), start=rows * number):
            draw_strip(axes[row], record, title, tracks)
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
    """Return the predictions of a video worth drawing: the best one of each object."""
    kept: list[Mapping] = []
    candidates = [p for p in predictions if p["video_id"] == video_id and p["score"] >= MIN_SCORE]
    for prediction in sorted(candidates, key=lambda p: -p["score"]):
        others = [other["segmentations"] for other in kept]
        if not others or tube_iou([prediction["segmentations"]], others).max() < MAX_IOU:
            kept.append(prediction)
    return kept


def is_right(label: int, tube: Sequence, truth: Sequence[tuple[int, Sequence]]) -> bool:
    """Return whether an object of that class is there, with a tube IoU of at least one half."""
    same = [other for other_label, other in truth if other_label == label]
    return bool(same) and tube_iou([tube], same).max() >= 0.5


def draw_strip(
    axes: Sequence[plt.Axes],
    record: Mapping,
    title: str,
    tracks: Sequence[tuple[Sequence, str, str]],
) -> None:
    """Draw frames of a video, spread evenly over it, in a row.

    Args:
        axes: where to draw.
        record: the dataset dict of the video.
        title: of the row.
        tracks: tube, text and colour behind the text of each object. Its outline keeps one colour.
    """
    times = np.linspace(0, record["length"] - 1, min(len(axes), record["length"])).round()
    for axis, t in zip(axes, times.astype(int), strict=False):
        shown = [
            (tube[t], text, behind, COLOURS[i % len(COLOURS)])
            for i, (tube, text, behind) in enumerate(tracks)
            if tube[t] is not None
        ]
        draw_image(axis, read_rgb(record["file_names"][t]), shown)
        axis.set_title(f"{title}, frame {t}", fontsize=8)
